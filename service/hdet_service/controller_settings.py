"""The field ``hdet`` of a job: request models made from `hdet_ray.config`'s dataclasses.

Names, types and defaults are read off those classes; their own checks run too, so that a message reads the
same over HTTP as in a script. Only what JSON Schema needs to know of the bounds stands here.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, create_model
from pydantic.fields import FieldInfo

from hdet_ray.config import MIN_SCOUT_STEPS, Auto, Controller, Fixed, Paper

_CLASSES: dict[str, type[Any]] = {"auto": Auto, "paper": Paper, "fixed": Fixed}

_MAX_STEPS = 1_000_000_000

BOUNDS: dict[str, dict[str, Any]] = {
    "alpha": {"ge": 0, "lt": 1},
    "sync_every": {"ge": 1, "le": _MAX_STEPS},
    "sigma": {"gt": 0},
    "step_size": {"ge": 0},
    "momentum": {"ge": 0, "lt": 1},
    "warmup_steps": {"ge": 0, "le": _MAX_STEPS},
    "scout_steps": {"ge": MIN_SCOUT_STEPS, "le": _MAX_STEPS},
    "pair_steps": {"ge": MIN_SCOUT_STEPS, "le": _MAX_STEPS},
    "scout_samples": {"ge": 1, "le": _MAX_STEPS},
    "pair_samples": {"ge": 1, "le": _MAX_STEPS},
    "scout_spacing": {"gt": 0},
    "pair_spacing": {"gt": 0},
    "max_scouts": {"ge": 1, "le": 1000},
    "max_pairs": {"ge": 1, "le": 1000},
    "max_search_ratio": {"gt": 0, "le": 1},
}
"""Said again for the schema; a test holds them to what the classes refuse themselves."""


def _check(model: BaseModel) -> BaseModel:
    to_controller(model)
    return model


def _model(tag: str, kind: type[Any]) -> Any:
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {"controller": (Literal[tag], ...)}
    for field in dataclasses.fields(kind):
        bounds = BOUNDS.get(field.name, {})
        hint = hints[field.name]
        info: FieldInfo = Field(default=field.default, **bounds)
        fields[field.name] = (hint, info)
    model = create_model(
        f"{kind.__name__}Settings",
        __config__=ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False),
        __doc__=(kind.__doc__ or "").strip().splitlines()[0],
        **fields,
    )
    return Annotated[model, AfterValidator(_check)]


AutoSettings = _model("auto", Auto)
PaperSettings = _model("paper", Paper)
FixedSettings = _model("fixed", Fixed)

ControllerSettings = Annotated[
    AutoSettings | PaperSettings | FixedSettings, Discriminator("controller")  # type: ignore[valid-type]
]
"""``{"controller": "auto" | "paper" | "fixed", …that class's fields}``."""


def to_controller(settings: BaseModel) -> Controller:
    """The library's own object, checked by itself.

    Raises:
        ConfigError: a value that the class refuses.
    """
    values = settings.model_dump()
    controller: Controller = _CLASSES[values.pop("controller")](**values)
    return controller
