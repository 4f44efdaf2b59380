"""The outputs of a reward model: one without a name, or one for each rating that it learnt."""

from __future__ import annotations

from collections.abc import Sequence

from stages.errors import UserError, nearest


def column(outputs: Sequence[str], name: str) -> int:
    """Where an output stands among those of a reward model.

    Args:
        outputs: their names; none of one that learnt preferences.
        name: which one; "" for the only one.

    Raises:
        UserError: it has no such output, or several and none was named.

    >>> column(["honesty", "detail"], "detail"), column(["honesty"], ""), column([], "")
    (1, 0, 0)
    """
    if name in outputs:
        return list(outputs).index(name)
    if not name and len(outputs) < 2:
        return 0
    if not outputs:
        what, mend = f"it has no output '{name}'", "train it with the objective 'regression', or use 'reward_model'"
    elif not name:
        what, mend = f"it has the outputs {', '.join(outputs)}", "name one: `{name: rating, output: ...}`"
    else:
        what, mend = f"it has no output '{name}'", nearest(name, list(outputs))
    raise UserError(what, where="the reward model", mend=mend)
