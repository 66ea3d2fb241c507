"""The exceptions of the project: who is at fault decides what happens next.

`UserError` is a mistake in the input or the configuration: one clear sentence, exit status 2, never retried.
`StageRefused` is a `UserError` about an index whose stored state disagrees with the configuration.
`Fault` is a machine's: a full disk, a shard that ended every engine it was given to. One clear sentence, exit status 1; what
could be retried has been.
Everything else (a bug, a fault nobody thought of) keeps its own type and is shown with its traceback.
"""

from __future__ import annotations


class ZeroGRError(Exception):
    """Base of the errors this project raises on purpose."""


class UserError(ZeroGRError):
    """A mistake the user can mend. The message is one sentence: what failed, the value seen, the limit, what to do."""


class Fault(ZeroGRError):
    """What the machines did and trying again did not mend. The message is one sentence, as for `UserError`."""


class StageRefused(UserError):
    """A stage of the index was made from something else than the configuration says."""
