"""MMDeploy: python tools/deploy.py DEPLOY_CFG MODEL_CFG CHECKPOINT IMAGE --work-dir DIR"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; names are those of MMDeploy."""
    parser = argparse.ArgumentParser(
        description="Export a model with MMDeploy: end2end.onnx (and an engine), the files of its "
        "SDK, and pictures of PyTorch's and the exported model's prediction."
    )
    parser.add_argument("deploy_cfg", help="a file of configs/deploy")
    parser.add_argument("model_cfg", help="the config that was trained with")
    parser.add_argument("checkpoint", help="exported/*.safetensors or a .pth checkpoint")
    parser.add_argument("img", help="a picture to export and compare with")
    parser.add_argument("--test-img", help="another picture to compare with")
    parser.add_argument("--work-dir", default=".", help="folder of the results (default: here)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or e.g. cuda:0")
    parser.add_argument(
        "--data", metavar="DATA.yaml", help="one's own folders, for a later test (folder configs)"
    )
    parser.add_argument(
        "--dump-info", action="store_true", help="as in MMDeploy; SDK files are always written"
    )
    parser.add_argument("--show", action="store_true", help="show the pictures in windows")
    parser.add_argument(
        "--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"]
    )
    add_debug(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Deploy and say what came out."""
    from mmseg_eomt.compat import require_mmdeploy

    require_mmdeploy()
    from mmdeploy.utils import get_root_logger

    from mmseg_eomt.apis.deploy import deploy

    get_root_logger().setLevel(args.log_level)
    deployed = deploy(
        args.deploy_cfg,
        args.model_cfg,
        args.checkpoint,
        args.img,
        work_dir=args.work_dir,
        device=args.device,
        data=args.data,
        test_image=args.test_img,
        show=args.show,
    )
    print(f"Written to {args.work_dir}: {', '.join(path.name for path in deployed.files)}.")
    if deployed.agreement is not None:
        print(
            f"{deployed.model.name} gives the labels of PyTorch in {deployed.agreement:.3%} of the "
            "pixels of the picture."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(run, parse_args(argv))
