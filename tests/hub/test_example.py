"""The end of examples/forget_a_family.py: what publishing would do, and then the doing."""

from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples"
CODE = """
import sys; sys.path.insert(0, sys.argv[1])
from forget_a_family import would_push
plan = would_push(sys.argv[2], "owner/forgot")
if sys.argv[3] == "go":
    import weightsurgery as ws
    from huggingface_hub import HfApi, get_token
    print(ws.push(HfApi(token=get_token()), plan).commit)
"""


def test_it_says_what_it_would_push_and_sends_nothing(hub, out):
    done = hub.python(CODE, EXAMPLE, out, "stay")
    assert done.returncode == 0, done.stderr
    assert "owner/forgot: " in done.stdout
    assert "files would go up" in done.stdout
    gone = hub.ws("inspect", "owner/forgot")
    assert gone.returncode == 1
    done = hub.python(CODE, EXAMPLE, out, "go")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()[-1]) == 40  # a commit
    assert hub.ws("inspect", "owner/forgot").returncode == 0
