"""What the adapters have in common: without its library each says what to install."""

import pytest
from subject_process import run

from akd_ext import adapters


@pytest.mark.integration
@pytest.mark.parametrize("library", ["transformers", "lightning", "textbrewer"])
def test_a_missing_library_is_named_with_its_command(library):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {library!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "try:\n"
        f"    import akd_ext.adapters.{library}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    assert f"pip install '.[{library}]'" in run(["-W", "ignore", "-c", code])


@pytest.mark.integration
def test_the_package_of_the_adapters_needs_no_library():
    code = "import sys, akd_ext.adapters; print({'transformers', 'lightning', 'textbrewer'} & set(sys.modules))"
    assert run(["-W", "ignore", "-c", code]).strip() == "set()"


def test_an_unknown_unit():
    with pytest.raises(ValueError, match="unit is 'epochs'; accepted: 'epoch', 'step'"):
        adapters.check_unit("epochs")
