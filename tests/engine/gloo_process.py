"""One of two processes of the gloo test: trains the toy model, process 0 writes its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import distributed

from tests.engine.engine_toys import CountingSampler, ToyData, loader, runner


class CountExchanges(Hook):  # type: ignore[misc]
    def __init__(self) -> None:
        self.counts: list[int] = []

    def before_train(self, runner: Any) -> None:
        def counted(
            state: Any, bucket: distributed.GradBucket
        ) -> torch.futures.Future[torch.Tensor]:
            self.counts[-1] += 1
            world = distributed.get_world_size()
            work = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
            return work.then(lambda future: future.value()[0] / world)

        runner.model.register_comm_hook(None, counted)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.counts.append(0)


def main(work_dir: Path) -> None:
    data = ToyData()
    counter = CountExchanges()
    train = loader(batch_size=1, data=data)
    run = runner(
        work_dir,
        steps=4,
        global_batch_size=4,
        batch_size=1,
        train=train,
        launcher="pytorch",
        hooks=[{"type": "MaskAnnealingHook"}, counter],
        experiment_name="gloo",
    )
    train["sampler"] = CountingSampler(data, rank=get_rank(), world=2)
    run.train()
    if get_rank() == 0:
        weights = torch.cat([p.detach().flatten() for p in run.model.module.parameters()])
        result = {"weights": weights.tolist(), "exchanges_per_step": counter.counts}
        (work_dir / "result.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
