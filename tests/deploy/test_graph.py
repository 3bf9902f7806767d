from __future__ import annotations

import numpy as np
import pytest
import torch

from mmseg_eomt.deploy.graph import DeployGraph
from mmseg_eomt.deploy.pictures import graph_input, made_pictures, network_input
from mmseg_eomt.deploy.request import deploy_metadata
from tests.deploy.lively import lively_header, lively_segmentor


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize("dynamic", ["", "batch,height,width"])
def test_graph_gives_what_the_segmentor_gives_and_leaves_it_as_it_is(
    family: str, dynamic: str
) -> None:
    header = lively_header(family)
    segmentor = lively_segmentor(header)
    before = {name: value.clone() for name, value in segmentor.state_dict().items()}
    metadata = deploy_metadata(
        header, height=45, width=30, batch_size=2, dynamic=dynamic, precision="fp32",
        outputs="both", include_preprocessing=True, channel_order="bgr", versions={},
    )  # fmt: skip
    pictures = made_pictures(2, (45, 30), channels=3)
    with torch.inference_mode():
        labels, scores = DeployGraph(segmentor, metadata)(
            torch.from_numpy(graph_input(pictures, metadata))
        )
        images = torch.from_numpy(network_input(np.stack(pictures), header))
        expected = segmentor.encode_decode(images, [{}, {}])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=2e-5)
    assert labels.dtype == torch.int32
    assert set(np.unique(labels)) <= set(header.class_ids)
    assert len(np.unique(labels)) >= 3
    ids = torch.tensor(header.class_ids, dtype=torch.int32)
    assert (labels == ids[expected.argmax(1)]).float().mean() >= 0.9999
    after = segmentor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
