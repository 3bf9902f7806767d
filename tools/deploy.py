"""MMDeploy: python tools/deploy.py DEPLOY_CFG MODEL_CFG CHECKPOINT IMAGE --work-dir DIR"""

from mmseg_eomt.commands.deploy import main

if __name__ == "__main__":
    raise SystemExit(main())
