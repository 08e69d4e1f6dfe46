"""The command about job specs that come with the package: specs."""

import argparse
import json
from typing import Any

from mnist_ray.cli.arguments import add_command


def add_spec_commands(commands: Any) -> None:
    """Add specs to the parser."""
    specs = add_command(commands, "specs", _specs, "list the packaged job specs, or print one of them to edit")
    specs.add_argument("name", nargs="?", metavar="NAME", help="the spec to print: mnist-ray specs mnist > my.yaml")
    specs.add_argument("--schema", action="store_true", help="print the JSON schema of a spec, for editors")


def _specs(arguments: argparse.Namespace) -> int:
    from mnist_ray.config import PACKAGED_SPECS, JobSpec, load_spec, packaged_specs, spec_file

    if arguments.schema:
        print(json.dumps(JobSpec.model_json_schema(), indent=2))
    elif arguments.name is None:
        for name in packaged_specs():
            first = (PACKAGED_SPECS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:<12} {first.removeprefix('# ')}")
    else:
        load_spec(arguments.name)  # refuses an unknown name
        print(spec_file(arguments.name).read_text(encoding="utf-8"), end="")
    return 0
