import json, os, sys, wandb

run = wandb.init(project="pirl", name=os.environ["PIRL_RUN"])
for line in sys.stdin:
    row = json.loads(line)
    run.log(row, step=row["step"])
