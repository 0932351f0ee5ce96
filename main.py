"""RankSeg from the command line.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
    python main.py --workdir=runs/quickstart --mode=evaluate
    python main.py --workdir=runs/quickstart --mode=predict --input=photo.jpg,folder/,list.txt
    python main.py --workdir=runs/quickstart --mode=analyze
    python main.py --workdir=runs/quickstart --mode=export
    python main.py --workdir=runs/public --mode=convert --input=facebook/mask2former-swin-tiny-ade-semantic
    python main.py --config=configs/segmenter.py --mode=prepare --config.data.dir=/data/ADEChallengeData2016 --workdir=/records

`train` trains (or resumes), evaluates, and draws predictions on the evaluation split. Any key of configs/common.py can be set:
--config.rankseg.num_selected=25. Without --config, the other modes use the one that `workdir` was trained with. `analyze` tells
which κ to use and what the model gets wrong; before training, with --config, what the data hold. `export` writes files that serve
the model without this package. `convert` makes public weights a run: a Hugging Face folder or name on the hub as it is, or, with
--config, whatever rankseg_jax/pretrained reads as the start of that config's model. `prepare` writes a published data set as TFDS
records into `workdir`, from which --config.data.dir then reads it; from its official folder it can be read without.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # before TensorFlow is first imported
os.environ.setdefault(
    'TF_ENABLE_ONEDNN_OPTS', '0'
)  # it only reads images here, and announces oneDNN at length

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The run: a file of configs/, see configs/common.py for its keys.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run: checkpoints, metrics, pictures. prepare: of the records.',
    required=True,
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate', 'predict', 'analyze', 'export', 'convert', 'prepare'],
    'What to do.',
)
_INPUT = flags.DEFINE_list(
    'input',
    None,
    'predict: images, folders, .txt lists; default: images of the evaluation split. '
    'convert: a folder, a file, or a name on the Hugging Face hub.',
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Folder to write to; default: <workdir>/predictions or export. '
    'evaluate: of label maps or panoptic segments, as in the data set.',
)


def main(argv):
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.ERROR)
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}; images to predict go into --input')
    try:
        run(_CONFIG.value, Path(_WORKDIR.value).expanduser())
    except KeyboardInterrupt:
        sys.exit('Interrupted. The same command goes on after the last checkpoint.')
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        logging.debug('', exc_info=True)
        sys.exit(f'error: {error}\n(--verbosity=1 shows where this comes from)')


def run(config, workdir: Path):
    from configs import common  # here and below: --help and bad flags answer at once
    from rankseg_jax import (
        checkpoint,
        config_check,
        convert,
        data,
        evaluate,
        export,
        predict,
        sharding,
        train,
    )

    if '://' in _WORKDIR.value:
        raise ValueError(
            f'--workdir={_WORKDIR.value} must be a path; mount the bucket, on a pod at the same place on every host'
        )
    sharding.start_distributed()
    if config is not None:
        config_check.check(config, common.get_config())
    if _MODE.value == 'prepare':
        if config is None:
            raise ValueError(
                '--mode=prepare needs --config, with config.data.name and config.data.dir'
            )
        print(
            f'Prepared: {data.prepare(config.data, workdir)}\nTo use it: --config.data.dir={workdir}'
        )
        return
    if _MODE.value == 'convert':
        if len(_INPUT.value or ()) != 1:
            raise ValueError(
                '--mode=convert needs --input: one folder, one file or one name on the Hugging Face hub'
            )
        print(
            f'Converted: {convert.run(_INPUT.value[0], workdir, config or common.get_config(), as_is=config is None)}'
        )
        return
    if config is None:
        if (
            _MODE.value == 'train'
            or _MODE.value == 'analyze'
            and not (workdir / 'checkpoints').is_dir()
        ):
            raise ValueError(
                f'--mode={_MODE.value} without checkpoints needs --config, such as --config=configs/quickstart.py'
            )
        manager = checkpoint.open_checkpoints(workdir)
        config = ConfigDict(
            checkpoint.restore_run(manager, checkpoint.find(manager, 'last'))['config']
        )

    if _MODE.value == 'train':
        scores = train.train(config, workdir)
        if not scores:
            return  # SIGTERM ended the run
        print(evaluate.table(scores))
    elif _MODE.value == 'evaluate':
        evaluate.run(config, workdir, _OUTPUT.value)
        return
    elif _MODE.value == 'analyze':
        from rankseg_jax import analysis  # the only mode that draws with matplotlib

        analysis.run(config, workdir)
        return
    elif _MODE.value == 'export':
        print(f'Exported: {export.run(config, workdir, _OUTPUT.value or workdir / "export")}')
        return
    output = Path(_OUTPUT.value or workdir / 'predictions')
    predictor = predict.load(workdir, config.eval.checkpoint, config)
    if _INPUT.value:
        predict.predict_files(predictor, _INPUT.value, output)
    elif config.num_pictures:
        print(f'Pictures:     {predict.predict_split(predictor, config, output)}')
    print(
        f'Predictions:  {output}\nCheckpoints:  {workdir}/checkpoints\nMetrics:      {workdir}/metrics.jsonl, '
        f'tensorboard --logdir={workdir}'
    )


def parse_flags(argv):
    """Flags, where a wrong key or value in a config file or an override ends in one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        lines = (
            str(error).strip('"\n ').splitlines()
        )  # of an error inside a config file, a traceback
        sys.exit(f'error: {lines[-1] if len(lines) > 2 else " ".join(lines)}')


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
