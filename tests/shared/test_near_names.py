"""What is said of a file that is not there, where one is whose name differs as only some disks see."""

import unicodedata

import pytest

from shared.errors import DataError
from shared.images import find_image
from shared.near_names import nearly_named


def folder_with(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(("there", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_the_two_forms_of_an_umlaut(tmp_path, there, asked):
    """Both look the same in a message, which would say of a name that stands in the folder that it does not."""
    name = "K\u00fcche/Gr\u00f6\u00dfe 1.jpg"
    root = folder_with(tmp_path, unicodedata.normalize(there, name))
    with pytest.raises(
        DataError, match=f"not found; there is a file whose name looks the same.* the form {there}"
    ):
        find_image(root, unicodedata.normalize(asked, name), ("",))
    assert find_image(root, unicodedata.normalize(there, name), ("",)).is_file()


def test_case_in_a_folder_and_in_the_name(tmp_path):
    root = folder_with(tmp_path, "images/Holiday/DSC_1.JPG")
    with pytest.raises(
        DataError, match="none of images; there is 'Holiday/DSC_1.JPG', which differs in upper and lower"
    ):
        find_image(root, "holiday/DSC_1.jpg", ("images",))


def test_a_name_unlike_any_other(tmp_path):
    root = folder_with(tmp_path, "images/a.jpg")
    assert nearly_named(root, "images/b.jpg") == nearly_named(root, "other/a.jpg") == ""
    assert nearly_named(root, "images/a.jpg/c.jpg") == ""
