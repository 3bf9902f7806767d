"""Averaged weights (EMA) as one argument of a run."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config


def apply_ema(cfg: Config, ema: bool | float | None) -> None:
    """Switch the exponential moving average of the weights on or off.

    With it, validation, `exported/best.safetensors` and `exported/last.safetensors` are those of
    the averaged weights.

    Args:
        cfg: The config; its hooks are changed.
        ema: True averages over about the last hundredth of the steps so far, whatever the length
            of the run (MMEngine's `MomentumAnnealingEMA` with its defaults: a new step counts
            `max(0.0002, 100 / (100 + step))`). A number between 0 and 1 is the constant share with
            which a new step counts. False switches it off, None keeps the config's.

    Raises:
        ValueError: If it is anything else.
    """
    if ema is None:
        return
    hook: dict[str, Any] = {"type": "EMAHook"}
    if ema is True:
        hook["ema_type"] = "MomentumAnnealingEMA"
    elif ema is not False:
        if isinstance(ema, str) or not 0 < ema < 1:
            raise ValueError(
                f"ema is {ema!r}: give True, False, or the share with which a new step counts, "
                "between 0 and 1, such as 0.001."
            )
        hook["momentum"] = float(ema)
    hooks = [own for own in cfg.get("custom_hooks") or () if own["type"] != "EMAHook"]
    cfg.custom_hooks = [*hooks, hook] if ema is not False else hooks
