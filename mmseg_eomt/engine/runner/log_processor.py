"""Log lines whose numbers are what they say."""

from __future__ import annotations

import re
from typing import Any

from mmengine.runner import LogProcessor
from mmseg.registry import LOG_PROCESSORS

# Four decimals would print 1e-5 as 0.0000, and memory with fractions of a byte.
FORMATS = {
    "lr_head": ".3e",
    "lr_backbone": ".3e",
    "images_per_second": ".4g",
    "data_wait": ".1%",
    "mfu": ".1%",
    "memory_allocated": ".0f",
    "memory_reserved": ".0f",
    "memory_resident": ".0f",
}


@LOG_PROCESSORS.register_module()
class StepLogProcessor(LogProcessor):  # type: ignore[misc]
    """mmengine's, counting steps, with each number in the form that suits it.

    Losses reach it as means over the steps since the last line, so its own smoothing is off for
    them; times are averaged over the last ``time_window`` steps.

    Args:
        time_window (int): Steps over which times are averaged. Defaults to 50.
        kwargs: Of mmengine's ``LogProcessor``.
    """

    def __init__(self, *, time_window: int = 50, **kwargs: Any) -> None:
        kwargs.setdefault("by_epoch", False)
        kwargs.setdefault("window_size", 1)
        custom = list(kwargs.pop("custom_cfg", None) or [])
        named = {item.get("log_name", item["data_src"]) for item in custom}
        for name in ("time", "data_time"):
            if name not in named:
                custom.append({"data_src": name, "method_name": "mean", "window_size": time_window})
        super().__init__(custom_cfg=custom, **kwargs)

    def get_log_after_iter(
        self, runner: Any, batch_idx: int, mode: str
    ) -> tuple[dict[str, Any], str]:
        """Scalars for the backends, and the line for people."""
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        for name, form in FORMATS.items():
            value = tag.get(name, tag.get(f"{mode}/{name}"))
            if value is not None:
                line = re.sub(rf"\b{name}: \S+", f"{name}: {value:{form}}", line)
        if "memory_allocated: " in line:
            # mmengine's own, of the first process only.
            line = re.sub(r"\bmemory: \d+  ", "", line)
        return tag, line
