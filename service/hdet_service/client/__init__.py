"""Client of the controller service: `HDETClient` for plain code, `AsyncHDETClient` for asyncio.

    with HDETClient() as client:
        job = client.submit({"name": "x", "entrypoint": "byte_lm", "config": {"preset": "tiny"},
                             "replicas": {"min": 3, "max": 3}})
        for event in client.follow_events(job["id"]):
            print(event["type"], event["data"])

Answers are the service's JSON as typed dictionaries; every error is a `ClientError`.
"""

from hdet_service.client._async import AsyncHDETClient
from hdet_service.client._errors import (
    AmbiguousJob,
    ClientError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PackageError,
    PreconditionFailed,
    Problem,
    Refused,
    ServiceFailed,
    TooLarge,
    TooMany,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from hdet_service.client._names import TERMINAL_STATES
from hdet_service.client._packages import describe_package
from hdet_service.client._retries import Retries
from hdet_service.client._sync import HDETClient
from hdet_service.client._types import (
    Checkpoint,
    Event,
    Job,
    Override,
    Progress,
    ReplicaCount,
    Role,
    Schedule,
    SchedulePoint,
    TokenInfo,
)

__all__ = [
    "TERMINAL_STATES",
    "AmbiguousJob",
    "AsyncHDETClient",
    "Checkpoint",
    "ClientError",
    "Conflict",
    "Event",
    "Forbidden",
    "HDETClient",
    "Invalid",
    "Job",
    "NotFound",
    "Override",
    "PackageError",
    "PreconditionFailed",
    "Problem",
    "Progress",
    "Refused",
    "ReplicaCount",
    "Retries",
    "Role",
    "Schedule",
    "SchedulePoint",
    "ServiceFailed",
    "TokenInfo",
    "TooLarge",
    "TooMany",
    "Unauthorized",
    "UnexpectedAnswer",
    "Unreachable",
    "describe_package",
]
