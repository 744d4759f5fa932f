"""A Beam worker as a process of a task manager: what a worker image's `boot` does, without the image.

    boot.py LOGS --id ID --provision_endpoint HOST:PORT

Beam's own `boot` is a Go program inside the image. This asks the provision service for the endpoints and the job's
options, and starts the same Python harness with them. It leaves `LOGS/<process>.log`, and `LOGS/<process>.shards` with
the name of every shard that this process has put into its place.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf import json_format, text_format

PROVISION_SECONDS = 30


def main() -> None:
    """Runs until the task manager closes the control channel, or is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("logs", type=Path)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    arguments, _ = parser.parse_known_args()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    log = (arguments.logs / f"{os.getpid()}.log").open("ab", buffering=0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.addaudithook(ShardsSeen(arguments.logs / f"{os.getpid()}.shards"))
    info = provision(arguments.provision_endpoint, arguments.id)
    os.environ |= {
        "WORKER_ID": arguments.id,
        "PIPELINE_OPTIONS": json.dumps(json_format.MessageToDict(info.pipeline_options)),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    sdk_worker_main.main(sys.argv)


class ShardsSeen:
    """An audit hook that notes each shard as its file gets its name; what the project does is not changed."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)

    def __call__(self, event: str, arguments: tuple) -> None:
        if event == "os.rename" and str(arguments[1]).endswith(".parquet"):
            self._file.write(Path(arguments[1]).name + "\n")


def provision(endpoint: str, worker_id: str) -> beam_provision_api_pb2.ProvisionInfo:
    """What the engine wants this worker to know."""
    channel = grpc.intercept_channel(grpc.insecure_channel(endpoint), WorkerIdInterceptor(worker_id))
    stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
    request = beam_provision_api_pb2.GetProvisionInfoRequest()
    info = stub.GetProvisionInfo(request, timeout=PROVISION_SECONDS).info
    assert isinstance(info.control_endpoint, endpoints_pb2.ApiServiceDescriptor)
    return info


if __name__ == "__main__":
    main()
