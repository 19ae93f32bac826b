"""Calls from the ingress to model replicas: repeated when a replica dies, with its errors as ours.

Every call is a pure function of its arguments, so it may run twice: when a replica dies during a call, the call is sent
again to another one. Callers set a timeout around all of it (a handle has none, and its router waits for a free replica
without limit); when it expires, the call is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from fusion.backoff import delays_s
from fusion.errors import own_cause
from serving.errors import NotReadyError, OverloadedError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


async def call(method: Any, *args: Any) -> Any:
    """`await method.remote(*args)` until it is answered or cancelled; `method` belongs to a `DeploymentHandle`.

    Raises the `ConduError` that the replica raised, `OverloadedError`, `NotReadyError`; anything else is a bug.
    """
    pauses_s = delays_s(_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
    while True:
        response = method.remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            raise OverloadedError(f"{error} Try again in a moment") from None
        except DeploymentUnavailableError as error:
            raise NotReadyError(error.message) from None
        except (RayActorError, ReplicaUnavailableError) as error:
            logger.warning("a replica died during a call, sending it again: %s", str(error).partition("\n")[0])
        except RayTaskError as error:
            if own := own_cause(error):
                raise own from None
            raise
        await asyncio.sleep(next(pauses_s))
