"""What the routers of a mixture do, in words."""

import math
from collections.abc import Mapping
from typing import Any

# Dead experts that are named.
_MOST = 8


def describe_routers(found: Mapping[str, Any]) -> str:
    """Returns a line about router.json.

    >>> found = {
    ...     "experts": 4, "top_k": 2, "share": [[0.4, 0.35, 0.24, 0.01]],
    ...     "entropy": [1.25], "dead": [[0, 3]], "dead_below": 0.025,
    ... }
    >>> print(describe_routers(found))
    2 of 4 a token; shares 1 % to 40 %, entropy 1.25 of 1.39 nats; dead (below 2.5 %): \
layer 0 expert 3
    """
    shares = [share for row in found["share"] for share in row]
    entropy = sum(found["entropy"]) / len(found["entropy"])
    dead = [f"layer {layer} expert {expert}" for layer, expert in found["dead"]]
    named = ", ".join(dead[:_MOST]) or "none"
    more = f" and {len(dead) - _MOST} more" if len(dead) > _MOST else ""
    return (
        f"{found['top_k']} of {found['experts']} a token; shares "
        f"{100 * min(shares):.0f} % to {100 * max(shares):.0f} %, entropy "
        f"{entropy:.2f} of {math.log(found['experts']):.2f} nats; dead (below "
        f"{100 * found['dead_below']:.2g} %): {named}{more}"
    )
