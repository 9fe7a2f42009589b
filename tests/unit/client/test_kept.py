"""What a client keeps on disk: whole and of its pool, or not there."""

import stat
from pathlib import Path

import pytest

from memkv.client.kept import KeptFiles
from memkv.metadata.watch import TicketGrant
from memkv.shardmap import MapVersion, ShardMap, Worker, pack_owners

WORKERS = (Worker(b"\x01" * 16, 1, "n1", "127.0.0.1", 7071),)
MAP = ShardMap(MapVersion(b"L" * 16, 1, 5), 4, WORKERS, pack_owners([0] * 4))
TICKET = TicketGrant(b"a ticket", "default", b"salt", 1_000)


def kept_in(folder: Path, tenant: str = "default") -> KeptFiles:
    return KeptFiles(folder / "deep", "127.0.0.1:7443", "default/local", tenant)


def test_ticket_comes_back_to_the_same_tenant_only_and_the_map_to_all(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    assert (kept.load_map(), kept.load_ticket(0)) == (None, None)
    kept.save_map(MAP)
    kept.save_ticket(TICKET)
    assert kept_in(tmp_path).load_map() == MAP
    assert kept_in(tmp_path).load_ticket(999) == TICKET
    other = kept_in(tmp_path, "team-a")
    assert (other.load_map(), other.load_ticket(0)) == (MAP, None)
    assert len(list((tmp_path / "deep").iterdir())) == 2, "nothing else is left behind"


def test_expired_ticket_is_no_ticket(tmp_path: Path) -> None:
    kept_in(tmp_path).save_ticket(TICKET)
    assert kept_in(tmp_path).load_ticket(1_000) is None


def test_others_cannot_read_a_ticket(tmp_path: Path) -> None:
    kept_in(tmp_path).save_ticket(TICKET)
    [file] = (tmp_path / "deep").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["map", "ticket"])
def test_every_cut_and_every_flipped_bit_is_nothing_kept(tmp_path: Path, name: str) -> None:
    kept = kept_in(tmp_path)
    kept.save_map(MAP)
    kept.save_ticket(TICKET)
    [file] = (tmp_path / "deep").glob(f"*.{name}")
    whole = file.read_bytes()
    for damaged in (
        *(whole[:cut] for cut in range(len(whole) - 1)),
        *(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(len(whole) - 1)),
        b"x" * (5 << 20),
    ):
        file.write_bytes(damaged)
        found = kept.load_map() if name == "map" else kept.load_ticket(0)
        assert found in (None, MAP if name == "map" else TICKET)
    file.write_bytes(whole[:-2])
    assert (kept.load_map() if name == "map" else kept.load_ticket(0)) is None


def test_folder_that_cannot_be_made_is_a_warning_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deep").write_text("a file")
    kept = kept_in(tmp_path)
    kept.save_map(MAP)
    kept.save_ticket(TICKET)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "MEMKV_CACHE_DIR" in caplog.text
