import ast
import textwrap
from pathlib import Path, PurePath

import pytest

from tools import measure_code


def trees_of(**sources: str) -> measure_code.Trees:
    """Parsed files; two underscores in a name stand for a folder."""
    return {
        PurePath(name.replace("__", "/") + ".py"): ast.parse(textwrap.dedent(source))
        for name, source in sources.items()
    }


def test_docstrings_and_decorators_are_free():
    source = '''
        @decorated
        def long():
            """One.

            Two.
            """
            def nested(): ...

            return nested
    '''
    lengths = measure_code.function_lengths(trees_of(file=source))
    assert [(each.where, each.num_lines) for each in lengths.longest] == [
        ("file.py:3 long", 4),
        ("file.py:8 nested", 1),
    ]
    assert (lengths.num_functions, lengths.median, lengths.percentile_90) == (2, 2.5, 4)


def test_private_functions_with_one_use():
    source = """
        def public(): return _called(), _twice(), _twice(), map(_passed, []), _shared()
        def _called(): ...
        def _twice(): ...
        def _passed(): ...
        def _shared(): ...
        def _unused(): ...
    """
    found = measure_code.one_use_functions(trees_of(file=source, other="from file import _shared\n_shared()"))
    assert (found.num_mentioned_once, found.num_called_once) == (3, 1)
    assert found.mentioned_once_percent == pytest.approx(100 * 3 / 6)


def test_event_keys_follow_untyped_dictionaries():
    source = """
        def read(run: Run, facts: dict[str, Any], table: DataFrame) -> None:
            started, tested = run.stage("started"), run.stage("tested")
            started["data"]["name"], (tested or {}).get("scores"), facts["at"]
            [plan["id"] for plan in started.get("plans", [])]
            facts = table
            facts["epoch"], table["epoch"], run.config["epoch"], started[0]
    """
    stage = "class Run:\n    def stage(self, name: str) -> dict[str, Any] | None: ..."
    parts = {"report__page": source, "record__events": source, "data__files": source}
    found = measure_code.event_keys(trees_of(record__run=stage, **parts))
    assert found.subscripts == {"report/page.py": 6}
    assert found.stage_names == {"report/page.py": 2}


def test_private_parts_of_ray():
    source = """
        import os, sys, ray
        from ray._private.services import node
        from ray.tune.execution import tune_controller
        class Client(ray.Base):
            def _ask(self): return super()._ask(), self._own, sys._getframe(), ray.__version__
        def start(task, client: Client): return task._actor, client._ask(), ray.init(_temp_dir="/tmp")
        os.environ["RAY_A"] = os.environ.get("RAY_B")
    """
    found = measure_code.ray_parts(trees_of(file=source, other="task._actor"))
    private = ["ray._private.services.node", "ray.init(_temp_dir=)", "super()._ask", "task._actor"]
    assert found.private == {"file.py": private}
    assert found.undocumented == {"file.py": ["ray.tune.execution.tune_controller"]}
    assert found.variables == {"file.py": ["RAY_A"]}


def test_whole_package_is_counted(tmp_path: Path):
    package = tmp_path / "package"
    (tmp_path / "tests").mkdir()
    package.mkdir()
    source = (
        '"""Two\n\nlines."""\n\n# none\nx: dict[str, Any]\ny: Mapping[\n    str, Any]\ndef f(): ...  # dict[str, Any]\n'
    )
    (package / "file.py").write_text(source)
    (tmp_path / "tests" / "test.py").write_text("x = 1\n")
    found = measure_code.measure(package)
    assert (found.num_product_lines, found.num_test_lines) == (6, 1)
    assert (found.num_dict_str_any, found.num_mapping_str_any) == (1, 1)
    assert "dict[str, Any]" in measure_code.table(found)
