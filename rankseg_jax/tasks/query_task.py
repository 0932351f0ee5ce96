"""A task that only per-query frameworks have: it learns masks, and predicts from one view."""

import abc

from rankseg_jax.outputs import QueryOutput
from rankseg_jax.tasks import queries
from rankseg_jax.tasks.semantic import Semantic


class QueryTask(Semantic):
    """Learns the masks of a batch's targets by queries."""

    @abc.abstractmethod
    def targets(self, batch) -> queries.Targets | queries.OverlappingTargets:
        """The targets of a training batch."""

    def check(self, output):
        task, options = self.config.task, self.config.eval
        if not isinstance(output, QueryOutput):
            raise ValueError(
                f'config.task = {task!r} needs a per-query framework such as mask2former, not '
                f'{self.config.model.framework}'
            )
        if options.flip or len(options.scales) > 1 or any(options.window):
            raise ValueError(
                f'config.eval.scales = {options.scales}, flip = {options.flip} and window = '
                f'{options.window}: the masks of config.task = {task!r} come from one view; set '
                'one scale, no flip and a window of (0, 0)'
            )

    def presence(self, batch):
        return queries.presence(self.targets(batch).labels, self.num_classes)

    def category_map(self, batch):
        return self.targets(batch).category_map()

    def loss(self, key, output, batch):
        return queries.loss(
            key,
            output,
            targets=self.targets(batch),
            mask=batch['mask'],
            config=self.config,
            num_classes=self.num_classes,
        )
