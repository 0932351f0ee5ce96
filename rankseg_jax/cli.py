"""RankSeg from the command line: `python main.py` in a clone, `rankseg` once it is installed.

    python main.py --mode=list
    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
    python main.py --workdir=runs/quickstart --mode=evaluate
    python main.py --workdir=runs/quickstart --mode=predict --input=photo.jpg,clip.mp4,folder/
    python main.py --workdir=runs/quickstart --mode=analyze
    python main.py --workdir=runs/quickstart --mode=demo
    python main.py --workdir=runs/quickstart --mode=export
    python main.py --workdir=runs/quickstart --mode=publish
    python main.py --workdir=runs/public --mode=convert \\
        --input=facebook/mask2former-swin-tiny-ade-semantic
    python main.py --config=configs/segmenter.py --workdir=/records --mode=prepare \\
        --config.data.dir=/data/ADEChallengeData2016

train     trains or resumes, evaluates, and draws predictions on the evaluation split.
evaluate  scores a checkpoint and writes report.html; with --output, also writes its predictions.
predict   writes label maps, overlays and JSON for images and videos.
analyze   shows which κ to use and what the model gets wrong, in report.html, too; before training,
          with --config, what is in the data.
demo      serves a page on this machine that segments photos and videos, with a run or an export.
export    writes files that serve the model without this package.
publish   writes a folder for the Hugging Face hub: weights, config and model card.
convert   makes public weights a run: a folder or a name on the Hugging Face hub as it is, or, with
          --config, any weights that rankseg_jax/pretrained reads as the start of that model.
prepare   writes a published data set as TFDS records into `workdir`, to be read through
          --config.data.dir. The official folder can be read without this step.
list      shows the configs that come with this library: --config=segmenter:ade20k_b16 is the file
          configs/segmenter.py with its argument ade20k_b16.

Any key of configs/common.py can be set, e.g. --config.rankseg.num_selected=25. Without --config,
all modes but train and prepare use the config that `workdir` was trained with, with these changes.
"""

import io
import os
import re
import sys
import traceback
from collections.abc import Sequence

# Before TensorFlow is imported. It announces oneDNN at length, also prints what it raises, and
# imports Keras, which takes two seconds, unless told to use the legacy one.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

OVERRIDE = re.compile(r'--?(no)?(?P<path>config(\.\w+)+)(?P<index>\[.*?)?(?P<value>=.*)?', re.S)
CACHE_BYTES = 4 * 2**30  # of compiled programs; those that are used the least make room

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'Config of the run: a file, or a name from --mode=list. configs/common.py documents its keys.',
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run: checkpoints, metrics, drawings; also gs://… or s3://…, see docs/scale.md. '
    'prepare: folder of the records.',
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    [
        'train',
        'evaluate',
        'predict',
        'analyze',
        'demo',
        'export',
        'publish',
        'convert',
        'prepare',
        'list',
    ],
    'What to do.',
)
_INPUT = flags.DEFINE_list(
    'input',
    None,
    'predict: images, videos, folders, .txt lists; default: the evaluation split. '
    'convert: a folder, a file, or a name on the Hugging Face hub.',
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Folder to write to instead of one in --workdir, which may then be read-only. '
    "evaluate: writes the scores there, and predictions in the data set's own format.",
)
_COMPARE = flags.DEFINE_list(
    'compare',
    None,
    'evaluate, analyze: workdirs of other runs, evaluated before, that the report shows beside '
    'this one.',
)
_TASK = flags.DEFINE_string(
    'task',
    None,
    'convert, without --config: semantic, panoptic, instance or, of a VidEoMT, video_semantic or '
    'video_instance; default: inferred from the names.',
)
_THINGS = flags.DEFINE_list(
    'things',
    None,
    'convert, without --config: categories that are things, by name or number, such as '
    '0-79,person; or all. Default: those of the data set that the names belong to.',
)
_COORDINATES = {
    'coordinator': flags.DEFINE_string(
        'coordinator',
        None,
        'Address host:port of process 0, for one run on several hosts. Give it on each of them '
        'with --num_processes and --process_id, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES '
        'and JAX_PROCESS_ID. Clusters that JAX recognizes need none of these: Cloud TPU, SLURM, a '
        'JobSet and others.',
    ),
    'num_processes': flags.DEFINE_integer(
        'num_processes', None, 'Number of processes of the run, see --coordinator.'
    ),
    'process_id': flags.DEFINE_integer(
        'process_id', None, 'Number of this process, from 0, see --coordinator.'
    ),
}


@flags.multi_flags_validator(['mode', 'workdir'], message='--workdir must have a value')
def _has_workdir(values) -> bool:
    return values['mode'] == 'list' or values['workdir'] is not None


def main(argv):
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.ERROR)
        # Traces of what fails in threads of orbax: it fails again where it is waited for.
        logging.get_absl_handler().addFilter(lambda record: not record.exc_info)
        sys.unraisablehook = lambda _: None
    overrides = [argument for argument in argv[1:] if OVERRIDE.fullmatch(argument)]
    if others := [argument for argument in argv[1:] if argument not in overrides]:
        raise app.UsageError(
            f'unexpected argument {others[0]!r}; pass images to predict in --input'
        )
    try:
        run(_CONFIG.value, _WORKDIR.value, overrides)
    except KeyboardInterrupt as error:
        from rankseg_jax import processes, storage

        storage.remove_temporary_folders()
        processes.leave(error, 'Interrupted. The same command resumes from the last checkpoint.')
    except Exception as error:
        from rankseg_jax import processes, storage

        if storage.is_full(error):
            path = getattr(error, 'filename', None) or written_folder()
            error = OSError(f'no space left on the disk of {path}: free some and start again')
        storage.remove_temporary_folders()
        if not isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
            processes.leave(error, traceback.format_exc())
        logging.debug('', exc_info=True)
        processes.leave(error, f'error: {error}\n(--verbosity=1 shows where this comes from)')


def written_folder() -> str | None:
    """The folder that the mode writes to."""
    into_workdir = _MODE.value in ('train', 'convert', 'prepare')
    return _WORKDIR.value if into_workdir else _OUTPUT.value or _WORKDIR.value


def run(config, workdir, overrides=()) -> None:
    import jax

    from configs import common  # here and below: --help and bad flags answer at once
    from rankseg_jax import config_check, from_data, processes, recipes, storage

    if _MODE.value == 'list':
        print(recipes.table())
        return
    workdir = storage.path(workdir)
    if _OUTPUT.value:
        storage.path(_OUTPUT.value)  # or refused
    if (_TASK.value or _THINGS.value) and (_MODE.value != 'convert' or config is not None):
        raise ValueError(
            '--task and --things describe public weights to --mode=convert without --config; '
            'elsewhere set --config.task'
        )
    if _COMPARE.value and _MODE.value not in ('evaluate', 'analyze'):
        raise ValueError('--compare is for the reports of --mode=evaluate and --mode=analyze')
    if overrides and _MODE.value in ('train', 'convert', 'prepare'):
        raise ValueError(f'{overrides[0]} needs --config=<the config that it changes>')
    processes.start(**{name: flag.value for name, flag in _COORDINATES.items()})
    if config is not None:
        config_check.check(config, common.get_config())
        config = from_data.as_trained(config, workdir)
    elif _MODE.value != 'convert':
        config = trained_config(workdir)
        if overrides:
            config = override(config, overrides)
            config_check.check(config, common.get_config())
    if _MODE.value in ('convert', 'prepare') and jax.process_count() > 1:
        raise ValueError(f'--mode={_MODE.value} runs as one process: start it on a single host')
    keep_programs((config or common.get_config()).compilation_cache)
    on_all_hosts = _MODE.value in ('train', 'evaluate') or (
        _MODE.value == 'predict' and _INPUT.value
    )
    if on_all_hosts or processes.is_first():  # the others would do the same
        MODES[_MODE.value](config, workdir)
    processes.end()


def keep_programs(folder: str) -> None:
    """Keeps compiled programs in a folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    import jax

    if folder and not jax.config.values['jax_compilation_cache_dir']:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
        jax.config.update('jax_compilation_cache_max_size', CACHE_BYTES)


def prepare(config, workdir) -> None:
    from rankseg_jax import data, storage

    for flag, place in (('--workdir', workdir), ('--config.data.dir', config.data.dir)):
        if storage.is_remote(place):
            raise ValueError(
                f'{flag}={place} must be a path: records are prepared on a disk, and read from a '
                'bucket once they are copied into it'
            )
    storage.make_folder(workdir, '--workdir')
    print(f'Prepared: {data.prepare(config.data, workdir)}')
    print(f'To use it: --config.data.dir={workdir}')


def convert(config, workdir) -> None:
    from configs import common
    from rankseg_jax import convert

    inputs = _INPUT.value or []
    if len(inputs) != 1:
        raise ValueError(
            '--mode=convert needs --input: one folder, one file or one name on the Hugging Face hub'
        )
    path = convert.run(
        inputs[0],
        workdir,
        config or common.get_config(),
        as_is=config is None,
        task=_TASK.value,
        things=_THINGS.value,
    )
    print(f'Converted: {path}')


def trained_config(workdir):
    """The config that `workdir` was trained with; None for an exported model, which needs none."""
    from rankseg_jax import checkpoint, export

    if _MODE.value == 'demo' and (workdir / export.ARTIFACT).is_file():
        return None
    if _MODE.value == 'prepare':
        raise ValueError('--mode=prepare needs --config, with config.data.name and config.data.dir')
    untrained = _MODE.value == 'analyze' and not (workdir / 'checkpoints').is_dir()
    if _MODE.value == 'train' or untrained:
        raise ValueError(
            f'--mode={_MODE.value} without checkpoints needs --config, such as '
            '--config=configs/quickstart.py'
        )
    manager = checkpoint.open_checkpoints(workdir)
    return checkpoint.newest_whole(manager, checkpoint.read_saved)[1].config


def override(config: ConfigDict | None, arguments: Sequence[str]) -> ConfigDict:
    """The config of a run with what arguments such as --config.eval.flip=True change.

    Raises:
      ValueError: a value is wrong, sizes or κ are left to the images, or there is no config, since
        the model is an exported one.
    """
    from rankseg_jax import from_data

    if config is None:
        raise ValueError(f'{arguments[0]} cannot change an exported model: export its run again')
    config = config.copy_and_resolve_references()  # which the flags change in place
    values, argv = flags.FlagValues(), ['', *arguments]
    try:
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(one_line(error)) from None
    if not from_data.is_complete(values.config):
        raise ValueError(
            'config.data.long_side > 0 and config.rankseg.num_selected = 0 take sizes and κ from '
            'the images before training; a run has them: set config.eval.size or κ itself'
        )
    return values.config


def one_line(error) -> str:
    """The message of a wrong flag, of which the last line counts if it holds a traceback."""
    if key := re.search(r'Override (rankseg\.\w+) .* field "rankseg" is None', str(error), re.S):
        return f'config.{key[1]} cannot be set: this is a baseline, whose config.rankseg is None'
    lines = str(error).strip('"\n ').splitlines()
    return lines[-1].removeprefix('ValueError: ') if len(lines) > 2 else ' '.join(lines)


def train(config, workdir) -> None:
    from rankseg_jax import evaluate, from_data, processes, storage, tasks, train

    if _OUTPUT.value:
        storage.make_folder(_OUTPUT.value)  # of the drawings, which come last
    scores = train.train(config, workdir)
    if scores is not None and processes.is_first():  # None: SIGTERM ended the run
        if scores:
            print(evaluate.table(scores, tasks.task_class(config.task).columns))
        predict(from_data.as_trained(config, workdir), workdir)


def evaluate(config, workdir) -> None:
    from rankseg_jax import evaluate

    evaluate.run(config, workdir, output=_OUTPUT.value, compare=_COMPARE.value or ())


def analyze(config, workdir) -> None:
    from rankseg_jax import analysis

    analysis.run(config, workdir, output=_OUTPUT.value, compare=_COMPARE.value or ())


def demo(config, workdir) -> None:
    from rankseg_jax import demo

    demo.run(config, workdir)


def export(config, workdir) -> None:
    from rankseg_jax import export

    print(f'Exported: {export.run(config, workdir, _OUTPUT.value or workdir / "export")}')


def publish(config, workdir) -> None:
    from rankseg_jax import publish

    print(f'Published: {publish.run(config, workdir, _OUTPUT.value or workdir / "hub")}')


def predict(config, workdir) -> None:
    from rankseg_jax import predict, sharding, storage
    from rankseg_jax.prediction_files import predict_files, predict_split

    output = storage.path(_OUTPUT.value or workdir / 'predictions')
    predictor = predict.load(workdir, config.eval.checkpoint, config)
    if _INPUT.value:
        with storage.written(output) as folder:
            predict_files(predictor, _INPUT.value, folder)
    elif config.num_pictures:
        with storage.written(output) as folder:
            grid = predict_split(predictor, config, folder)
        drawn = output / grid.name if grid else 'none, since the oracle needs the truth of clips'
        print(f'Drawings:     {drawn}')
    sharding.print_once(f'Predictions:  {output}')
    sharding.print_once(f'Checkpoints:  {workdir}/checkpoints')
    sharding.print_once(f'Metrics:      {workdir}/metrics.jsonl, tensorboard --logdir={workdir}')


MODES = {
    'train': train,
    'evaluate': evaluate,
    'predict': predict,
    'analyze': analyze,
    'demo': demo,
    'export': export,
    'publish': publish,
    'convert': convert,
    'prepare': prepare,
}


def parse_flags(argv):
    """Flags, where a wrong key or value in a config file or an override ends in one line."""
    from configs import common
    from rankseg_jax import config_check, recipes

    overrides = []  # of the config that --workdir was trained with
    try:
        for i, argument in enumerate(argv):
            if found := OVERRIDE.fullmatch(argument):
                default = config_check.check_path(found['path'], common.get_config())
                if found['index']:
                    raise ValueError(
                        f'{argument} sets one item: set all, as in --{found["path"]}="{default}"'
                    )
                if not any(re.match('--?config(=|$)', other) for other in argv):
                    if not found['value'] and not isinstance(default, bool):
                        value = next((x for x in argv[i + 1 :] if not x.startswith('-')), '…')
                        raise ValueError(f'{argument} needs =: write --{found["path"]}={value}')
                    overrides.append(argument)
            if name := re.fullmatch(r'--?config=([^:]*)(:.*)?', argument, re.S):
                argv[i] = f'--config={recipes.file(name[1])}{name[2] or ""}'
            elif argument in ('-config', '--config'):
                raise ValueError('--config needs =, as in --config=quickstart')
        return flags.FLAGS([x for x in argv if x not in overrides]) + overrides
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')


def start() -> None:
    """Runs the program; --help shows this module's flags and docstring."""
    sys.modules['__main__'].__doc__ = __doc__
    for stream in (sys.stdout, sys.stderr):  # file names need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=parse_flags)
