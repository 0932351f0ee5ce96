# Programs of tests run for milliseconds and compile for seconds: LLVM need not optimize them, nor
# split them over threads that other workers use already. Fusion emitters take four times as long to
# compile.
FAST_COMPILATION = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE'
)
