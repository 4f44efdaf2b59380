"""Hypervolume: how much of two rewards that pull apart a policy can have, over the directions that it is told."""

from collections.abc import Sequence

from stages.evaluate import fronts
from stages.evaluate.metrics._rows import Rows
from stages.parts import part

FLOOR = (0.0, 0.0)  # the worst of both rewards


@part(needs=("scores",), range=(0.0, 1.0))
class Hypervolume:
    """Share of the square of two rewards that the policy is at least as good as in some direction.

        p_d = (mean r_1, mean r_2) over the answers to prompts that state direction d, r on 0 (worst) to 1 (best)
        hypervolume = area of the union over d of the rectangles from (0, 0) to p_d

    Without directions there is one point, and the area is the product of both means. `base` is that of the base
    model's answers to the same prompts, `front` the share of the policy's own points that none of its others is better
    than: 1 for a front without a dent.

    `update` takes `[n]` each: `direction` in degrees from the first reward to the second, `first` and `second`, and
    `base_first` and `base_second`. The evaluate stage gives them where `evaluate.front` names two rewards.

    >>> metric = Hypervolume()
    >>> metric.update(
    ...     direction=[0, 45], first=[0.8, 0.5], second=[0.2, 0.5], base_first=[0.5, 0.5], base_second=[0.2, 0.2]
    ... )
    >>> {key: round(value, 2) for key, value in metric.compute().items()}  # 0.5 * 0.5 + 0.3 * 0.2
    {'hypervolume': 0.31, 'base': 0.1, 'difference': 0.21, 'front': 1.0}

    Source: Zitzler and Thiele, Multiobjective Optimization Using Evolutionary Algorithms: a comparative case study,
    PPSN 1998; as the measure of fronts of directions, after Wang et al. 2024, arXiv 2402.18571, figure 1.
    """

    def __init__(self) -> None:
        self.rows = Rows("hypervolume")

    def update(
        self,
        direction: Sequence[float],
        first: Sequence[float],
        second: Sequence[float],
        base_first: Sequence[float],
        base_second: Sequence[float],
    ) -> None:
        """Add rows."""
        self.rows.add(direction=direction, first=first, second=second, base_first=base_first, base_second=base_second)

    def compute(self) -> dict[str, float]:
        """The policy's area, the base model's, their difference, and the share of points on the front."""
        told = {
            name: self.rows[name].tolist() for name in ("direction", "first", "second", "base_first", "base_second")
        }
        own, base = ([p.values for p in fronts.points(told, prefix)] for prefix in ("", "base_"))
        area, before = (fronts.hypervolume(values, FLOOR) for values in (own, base))
        on = fronts.front(own)
        return {"hypervolume": area, "base": before, "difference": area - before, "front": sum(on) / len(on)}
