"""What the Beam provider starts as a pipeline: our command, with the provider's options behind ` -- `.

It fails where the command fails. Out of time (exit status 4) is no failure: the next night goes on.
"""

import os
import sys

import teachonce

OURS = (
    "--corpus corpus/*.jsonl.zst --id_field id --teacher ./teacher --task causal-lm --cache ./cache --max_hours 5 "
    "--no_progress --report report.json"
)

if __name__ == "__main__":
    os.chdir(os.environ.get("TEACHONCE_HOME", "/srv/teachonce"))
    status = teachonce.main(["precompute", *OURS.split(), "--", *sys.argv[1:]])
    sys.exit(0 if status == 4 else status)
