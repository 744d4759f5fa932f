"""An Airflow DAG: the teacher every night by the Beam provider, a student every time that something is new.

Copy this file and `precompute_for_beam.py` into Airflow's folder of DAGs.
"""

from datetime import datetime, timedelta
from pathlib import Path

from airflow import DAG
from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

HOME = "/srv/teachonce"
VERIFY = "teachonce verify ./cache"
TRAIN = (
    "teachonce train --cache ./cache --student student.json --losses kl=1 ce=0.5 "
    "--output_dir ./student-{{ ds_nodash }} --num_train_epochs 3 --resume_from_checkpoint auto"
)
EVALUATE = "teachonce evaluate --cache ./cache --student ./student-{{ ds_nodash }} --json"

with DAG(
    dag_id="teachonce",
    schedule="15 1 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
) as dag:
    precompute = BeamRunPythonPipelineOperator(
        task_id="precompute",
        py_file=str(Path(__file__).with_name("precompute_for_beam.py")),
        py_interpreter="python3",
        runner="FlinkRunner",
        pipeline_options={
            "flink_master": "flink:8081",
            "flink_version": "1.19",
            "environment_type": "EXTERNAL",
            "environment_config": "localhost:50000",
            "parallelism": "8",
        },
    )
    verify = BashOperator(task_id="verify", bash_command=VERIFY, cwd=HOME)
    train = BashOperator(task_id="train", bash_command=TRAIN, cwd=HOME)
    evaluate = BashOperator(task_id="evaluate", bash_command=EVALUATE, cwd=HOME)

    precompute >> verify >> train >> evaluate
