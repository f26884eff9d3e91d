"""The file of a site: what it may say, and what it is told where it may not."""

import pytest

from shared.cluster.site import SiteConfig, read_site, seconds_of
from shared.errors import DataError


def test_every_key_is_a_field(tmp_path):
    file = tmp_path / "cluster.toml"
    file.write_text(
        'partition = "gpu"\naccount = "vision"\ntime = "2-00:00:00"\ngpus_per_node = 4\ngpu_type = "a100"\n'
        'setup = ["module load cuda/12.8"]\nsbatch = ["--constraint=a100"]\ncontainer = "apptainer exec l2l.sif"\n'
    )
    assert read_site(file) == SiteConfig(
        partition="gpu",
        account="vision",
        time="2-00:00:00",
        gpus_per_node=4,
        gpu_type="a100",
        setup=("module load cuda/12.8",),
        sbatch=("--constraint=a100",),
        container="apptainer exec l2l.sif",
    )


def test_the_working_folder_is_looked_in_where_no_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_site(None) == SiteConfig()
    (tmp_path / "cluster.toml").write_text("gpus_per_node = 8\n")
    assert read_site(None).gpus_per_node == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition gpu", "cannot be read as TOML"),
        ('partitions = "gpu"', "partitions: no such key (there are partition, account"),
        ('gpus_per_node = "4"', "gpus_per_node is '4', expected a whole number"),
        ("gpus_per_node = true", "gpus_per_node is True, expected a whole number"),
        ("gpus_per_node = -1", "gpus_per_node is -1, expected at least 0"),
        ("max_array_size = -1", "max_array_size is -1, expected at least 0"),
        ('partition = "gpu debug"', "partition is 'gpu debug', expected a word"),
        ('account = "a\\n#SBATCH --wrap=b"', "account holds"),
        ('time = "a day"', "time is 'a day', expected for example 90, 12:00:00"),
        (
            'time = "3"',
            "time is '3', expected more than notice_s (120 s) and 60 s, by which Slurm may be early: a job",
        ),
        ('notice_s = 900\ntime = "0:16:00"', "time is '0:16:00', expected more than notice_s (900 s)"),
        ('setup = "module load cuda"', "setup is 'module load cuda', expected a list of lines"),
        ('setup = ["one\\ntwo"]', "setup holds 'one\\ntwo', expected one line of text"),
        ("setup = [3]", "setup holds 3, expected one line of text"),
        ('sbatch = ["#SBATCH --x"]', "sbatch holds '#SBATCH --x', expected an option"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    file = tmp_path / "site.toml"
    file.write_text(text + "\n")
    with pytest.raises(DataError) as refused:
        read_site(file)
    assert str(refused.value).startswith(f"{file}: ") and message in str(refused.value)


def test_a_file_that_was_named_must_be_there(tmp_path):
    with pytest.raises(DataError, match="nowhere.toml: No such file"):
        read_site(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("4:30", 270),
        ("1:02:03", 3723),
        ("2-0", 172_800),
        ("1-2:03", 93_780),
        ("1-0:00:05", 86_405),
        ("0", 0),
    ],
)
def test_times_are_read_as_slurm_does(text, seconds):
    assert seconds_of(text) == seconds
    assert SiteConfig(time=text).time == text
