"""What the launcher of a Dataflow flex template starts: the graph of one night is made now, and staged for it.

The launcher hands every parameter over as `--name=value`, Dataflow's own options among them, and says by
`--template_location` where it will look for the job. Ours are those that `metadata.json` names. Unlike a classic
template this one is made anew at every launch, so its list of files and its version of the cache are tonight's. The
commit is the job's last step, on a worker; nothing waits here.
"""

import json
import sys
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions

from pipelines.cli import run_flags
from pipelines.cli.precompute import run_config
from pipelines.job.pipeline import build
from pipelines.job.run import prepare

_METADATA = json.loads(Path(__file__).with_name("metadata.json").read_text(encoding="utf-8"))
OURS = {parameter["name"] for parameter in _METADATA["parameters"]}


def stage(words: list[str]) -> None:
    """Stages the job where the launcher looks for it.

    Raises:
        TeachonceError: what `teachonce precompute` would refuse.
    """
    named = [(word.partition("=")[0].removeprefix("--"), word) for word in words]
    ours = [word for name, word in named if name in OURS]
    beams = [word for name, word in named if name not in OURS and name != "template_location"]
    (place,) = [word.partition("=")[2] for name, word in named if name == "template_location"]
    config = run_config(*run_flags.precompute([*ours, "--", *beams]))
    job, options = prepare(config)
    options.view_as(GoogleCloudOptions).template_location = place
    pipeline = beam.Pipeline(options=options)
    build(pipeline, job)
    pipeline.run()


if __name__ == "__main__":
    stage(sys.argv[1:])
