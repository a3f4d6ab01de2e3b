import json, os, sys, mlflow

mlflow.set_experiment("pirl")
with mlflow.start_run(run_name=os.environ["PIRL_RUN"]):
    for line in sys.stdin:
        row = json.loads(line)
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
        mlflow.log_metrics(numbers, step=row["step"])
