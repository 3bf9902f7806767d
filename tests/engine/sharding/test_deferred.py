"""A model built without memory has the weights of an ordinary one."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from mmseg_eomt.engine.sharding.deferred import deferred_weights
from tests.engine.sharding.test_memory import CONFIG

ARCH = {"embed_dims": 64, "depth": 4, "num_heads": 2, "patch_size": 8}


def built() -> nn.Module:
    cfg = Config.fromfile(CONFIG).model
    cfg.backbone.update(pretrained=None, arch=dict(ARCH))
    cfg.decode_head.num_classes = 5
    model: nn.Module = MODELS.build(cfg)
    return model


def test_deferred_weights_are_those_of_an_ordinary_construction() -> None:
    torch.manual_seed(3)
    ordinary = dict(built().named_parameters())
    drawn = torch.rand(4)
    torch.manual_seed(3)
    with deferred_weights() as weights:
        model = built()
    assert torch.equal(torch.rand(4), drawn)
    deferred = dict(model.named_parameters())
    assert deferred.keys() == ordinary.keys()
    assert sum(p.is_meta for p in deferred.values()) > 10
    # In any order, and more than once.
    for name in [*reversed(deferred), *deferred]:
        assert torch.equal(weights.value(deferred[name]), ordinary[name]), name
    assert "weight" in nn.Linear(2, 2).state_dict() and not nn.Linear(100, 100).weight.is_meta
