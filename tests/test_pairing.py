"""Which clean file belongs to which noisy one: layouts of the corpora that people have."""

import math
import os

import numpy as np
import pytest

from speech.data.corpus import find_matches, find_pairs, parse_snr_folder


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def partners(tmp_path, noisy, clean, **options):
    """Makes both trees; returns {noisy: clean}, relative, of those that pair."""
    touch(tmp_path / "noisy", *noisy)
    touch(tmp_path / "clean", *clean)
    found = find_matches(tmp_path / "noisy", tmp_path / "clean", **options)
    pairs = {
        pair.noisy_path.relative_to(tmp_path / "noisy").as_posix(): pair.clean_path.relative_to(
            tmp_path / "clean"
        ).as_posix()
        for pair in found.pairs
    }
    left = {path.relative_to(tmp_path / "noisy").as_posix() for path, _ in found.unpaired}
    assert len(pairs) == len(found.pairs) and not left & set(pairs)
    return pairs


# --- layouts ----------------------------------------------------------------------------------

KAGGLE = ["TRAIN/DR1/FCJF0/SA1.WAV", "TRAIN/DR1/FCJF0/SA1.WAV.wav", "TRAIN/DR4/MABC0/SA1.WAV",
          "TRAIN/DR4/MABC0/SA1.WAV.wav"]  # fmt: skip
LAYOUTS = {
    "voicebank": (
        ["p232_001.wav", "p257_001.wav"],
        ["p232_001.wav", "p257_001.wav"],
        {"p232_001.wav": "p232_001.wav", "p257_001.wav": "p257_001.wav"},
    ),
    "voicebank, one folder higher": (
        ["noisy_trainset_28spk_wav/p226_001.wav", "noisy_testset_wav/p232_001.wav"],
        ["clean_trainset_28spk_wav/p226_001.wav", "clean_testset_wav/p232_001.wav"],
        {
            "noisy_trainset_28spk_wav/p226_001.wav": "clean_trainset_28spk_wav/p226_001.wav",
            "noisy_testset_wav/p232_001.wav": "clean_testset_wav/p232_001.wav",
        },
    ),
    "chime-2 grid": (
        ["m6dB/s1_bbaf2n.wav", "9dB/s1_bbaf2n.wav", "9dB/s2_bbaf2n.wav"],
        ["s1_bbaf2n.wav", "s2_bbaf2n.wav"],
        {
            "m6dB/s1_bbaf2n.wav": "s1_bbaf2n.wav",
            "9dB/s1_bbaf2n.wav": "s1_bbaf2n.wav",
            "9dB/s2_bbaf2n.wav": "s2_bbaf2n.wav",
        },
    ),
    "chime-2 by speaker": (
        ["isolated/m6dB/s1/bbaf2n.wav", "isolated/m6dB/s2/bbaf2n.wav"],
        ["clean/s1/bbaf2n.wav", "clean/s3/bbaf2n.wav"],
        {"isolated/m6dB/s1/bbaf2n.wav": "clean/s1/bbaf2n.wav"},
    ),
    "chime-2 wsj": (
        ["isolated/si_et_05/m6dB/440/440c0201.wav"],
        ["reverberated/si_et_05/440/440c0201.wav"],
        {"isolated/si_et_05/m6dB/440/440c0201.wav": "reverberated/si_et_05/440/440c0201.wav"},
    ),
    "wham": (
        ["tt/mix_both/050a0501_1.7_442o030z.wav", "tr/mix_both/01_02.wav"],
        ["tt/s1/050a0501_1.7_442o030z.wav", "cv/s1/01_02.wav", "tt/noise/01_02.wav"],
        {"tt/mix_both/050a0501_1.7_442o030z.wav": "tt/s1/050a0501_1.7_442o030z.wav"},
    ),
    "wham, two speakers in one file": (
        ["mix_both/a.wav", "mix_single/a.wav"],
        ["s1/a.wav", "s2/a.wav"],
        {"mix_single/a.wav": "s1/a.wav"},
    ),
    "wham, all of a part": (
        ["mix_both/a.wav", "mix_clean/a.wav", "noise/a.wav", "s2/a.wav"],
        ["a.wav"],
        {"mix_both/a.wav": "a.wav"},
    ),
    "wham, two rates": (
        ["wav16k/min/tt/mix_single/a.wav", "wav8k/min/tt/mix_both/a.wav"],
        ["wav16k/min/tt/s1/a.wav", "wav8k/min/tt/s1/a.wav"],
        {
            "wav16k/min/tt/mix_single/a.wav": "wav16k/min/tt/s1/a.wav",
            "wav8k/min/tt/mix_both/a.wav": "wav8k/min/tt/s1/a.wav",
        },
    ),
    "dns challenge, noise beside": (
        ["noisy/a.wav", "noise/a.wav"],
        ["clean/a.wav", "noise/a.wav"],
        {"noisy/a.wav": "clean/a.wav"},
    ),
    "timit as cd": (
        ["babble/FCJF0/5dB/SA1.wav", "car/MABC0/-5dB/SA1.WAV"],
        ["TRAIN/DR1/FCJF0/SA1.WAV", "TRAIN/DR4/MABC0/SA1.WAV"],
        {
            "babble/FCJF0/5dB/SA1.wav": "TRAIN/DR1/FCJF0/SA1.WAV",
            "car/MABC0/-5dB/SA1.WAV": "TRAIN/DR4/MABC0/SA1.WAV",
        },
    ),
    "timit, kaggle": (
        ["TRAIN/DR1/FCJF0/SA1.WAV.wav", "babble/MABC0/5db/SA1.wav"],
        [*KAGGLE, "TRAIN/DR1/FCJF0/SX37_rif.wav"],
        {
            "TRAIN/DR1/FCJF0/SA1.WAV.wav": "TRAIN/DR1/FCJF0/SA1.WAV.wav",
            "babble/MABC0/5db/SA1.wav": "TRAIN/DR4/MABC0/SA1.WAV",
        },
    ),
    "timit, lower case": (
        ["babble/FCJF0/5db/SA1.wav", "babble/dr4/mabc0/5db/sa1.wav"],
        ["train/dr1/fcjf0/sa1.wav", "train/dr4/mabc0/sa1.wav"],
        {
            "babble/FCJF0/5db/SA1.wav": "train/dr1/fcjf0/sa1.wav",
            "babble/dr4/mabc0/5db/sa1.wav": "train/dr4/mabc0/sa1.wav",
        },
    ),
    "timit without dialects": (
        ["TEST/babble/5db/FCJF0/SA1.wav", "TEST/babble/5db/MABC0/SA1.wav"],
        ["TRAIN/FCJF0/SA1.WAV", "TEST/FCJF0/SA1.WAV", "TRAIN/MABC0/SA1.WAV"],
        {"TEST/babble/5db/FCJF0/SA1.wav": "TEST/FCJF0/SA1.WAV"},
    ),
    "timit, another dialect is another speaker": (
        ["babble/DR1/FCJF0/5db/SA1.wav"],
        ["DR2/FCJF0/SA1.WAV"],
        {},
    ),
    "prepared from timit": (
        ["babble/FCJF0/5db/FCJF0_SA1.wav"],
        ["TRAIN/DR1/FCJF0/SA1.WAV", "TRAIN/DR1/MABC0/SA1.WAV"],
        {"babble/FCJF0/5db/FCJF0_SA1.wav": "TRAIN/DR1/FCJF0/SA1.WAV"},
    ),
    "vctk below a wrapper": (
        ["babble/p225/5db/p225_001.wav", "babble/p226/5db/p226_001.wav"],
        ["VCTK-Corpus/wav48/p225/p225_001.wav", "VCTK-Corpus/wav48/p226/p226_001.wav"],
        {
            "babble/p225/5db/p225_001.wav": "VCTK-Corpus/wav48/p225/p225_001.wav",
            "babble/p226/5db/p226_001.wav": "VCTK-Corpus/wav48/p226/p226_001.wav",
        },
    ),
    "librispeech": (
        ["rain/0dB/1034-121119-0000.flac"],
        ["LibriSpeech/dev-clean/1034/121119/1034-121119-0000.flac"],
        {
            "rain/0dB/1034-121119-0000.flac": (
                "LibriSpeech/dev-clean/1034/121119/1034-121119-0000.flac"
            )
        },
    ),
    # Case 07: a file of that name, but of another speaker.
    "another speaker": (
        ["babble/FCJF0/5db/SX127.wav", "babble/MABC0/5db/SX127.wav"],
        ["DR1/MABC0/SX127.wav"],
        {"babble/MABC0/5db/SX127.wav": "DR1/MABC0/SX127.wav"},
    ),
    "another speaker alone": (["babble/FCJF0/5db/SX127.wav"], ["DR1/MABC0/SX127.wav"], {}),
    "another speaker, names of people": (
        ["babble/alice/5db/hello.wav", "alice/hello.wav"],
        ["bob/hello.wav"],
        {},
    ),
    "another speaker, one clean folder": (
        ["babble/FCJF0/5db/SX127.wav", "babble/MABC0/5db/SX127.wav", "car/FCJF0/0db/SX9.wav"],
        ["SX127.wav", "SX9.wav"],
        {"car/FCJF0/0db/SX9.wav": "SX9.wav"},
    ),
    "another speaker, book of the same name": (
        ["car/p227/book1/001.wav"],
        ["p226/book1/001.wav"],
        {},
    ),
    # Case 08: the same relative path pairs first, always.
    "same path": (
        ["p226/book1/001.wav", "p226/book2/001.wav", "p227/book1/001.wav"],
        ["p226/book1/001.wav", "p226/book2/001.wav", "p227/book1/001.wav", "001.wav"],
        {
            "p226/book1/001.wav": "p226/book1/001.wav",
            "p226/book2/001.wav": "p226/book2/001.wav",
            "p227/book1/001.wav": "p227/book1/001.wav",
        },
    ),
    "same path, other endings": (
        ["a/x.wav", "A/y.WAV", "a/z.wav"],
        ["a/x.flac", "a/Y.wav", "a/z.flac", "a/z.wav"],
        {"a/x.wav": "a/x.flac", "A/y.WAV": "a/Y.wav", "a/z.wav": "a/z.wav"},
    ),
    "same path below noise and snr": (
        ["babble/-5/one/two/a.wav", "babble/5.0/one/three/a.wav"],
        ["one/two/a.wav", "one/three/a.wav"],
        {
            "babble/-5/one/two/a.wav": "one/two/a.wav",
            "babble/5.0/one/three/a.wav": "one/three/a.wav",
        },
    ),
    "noises and snrs in both trees": (
        ["babble/5db/a.wav", "car/5dB/a.wav", "car/0db/a.wav"],
        ["babble/5dB/a.wav", "car/5db/a.wav"],
        {"babble/5db/a.wav": "babble/5dB/a.wav", "car/5dB/a.wav": "car/5db/a.wav"},
    ),
    "copies": (
        ["x.WAV", "x_rif.wav", "x.WAV.wav", "y_rif.wav"],
        ["x.WAV", "x_rif.wav", "x.WAV.wav", "y.WAV", "y_rif.wav"],
        {"x.WAV": "x.WAV", "y_rif.wav": "y_rif.wav"},
    ),
    "composed and decomposed letters": (
        ["Gru\u00df/\u00fc.wav"],
        ["Gru\u00df/u\u0308.wav"],
        {"Gru\u00df/\u00fc.wav": "Gru\u00df/u\u0308.wav"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    noisy, clean, expected = LAYOUTS[layout]
    if expected:
        assert partners(tmp_path, noisy, clean) == expected
    else:
        with pytest.raises(ValueError, match="none of . noisy files has a clean partner"):
            partners(tmp_path, noisy, clean)


def test_what_has_no_partner_is_counted_and_named(tmp_path, caplog):
    touch(tmp_path / "noisy", "babble/FCJF0/5db/SX127.wav", "babble/MABC0/5db/SX127.wav", "z.wav")
    touch(tmp_path / "clean", "DR1/MABC0/SX127.wav")
    found = find_matches(tmp_path / "noisy", tmp_path / "clean")
    assert [(path.parts[-3:], reason) for path, reason in found.unpaired] == [
        (("FCJF0", "5db", "SX127.wav"), "its speaker is another one than in the clean files"),
        ((tmp_path.name, "noisy", "z.wav"), "no such name"),
    ]
    find_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert "2 noisy files without one clean partner" in caplog.text
    assert "FCJF0" in caplog.text and "z.wav" in caplog.text


# --- never with itself ------------------------------------------------------------------------


def test_clean_folder_inside_the_noisy_one(tmp_path, caplog):
    touch(tmp_path, *(f"data/{kind}/u{n}.wav" for kind in ("clean", "noisy") for n in range(3)))
    pairs = find_pairs(tmp_path / "data", tmp_path / "data" / "clean")
    assert [pair.noisy_path.parent.name for pair in pairs] == ["noisy"] * 3
    assert "3 files in" in caplog.text and "left out" in caplog.text


def test_noisy_folder_inside_the_clean_one(tmp_path, caplog):
    touch(tmp_path, *(f"data/{kind}/u{n}.wav" for kind in ("noisy", "speech") for n in range(3)))
    pairs = find_pairs(tmp_path / "data" / "noisy", tmp_path / "data")
    assert [pair.clean_path.parent.name for pair in pairs] == ["speech"] * 3
    touch(tmp_path, "both/a.wav")
    for one, other in (("both", "both"), ("both", "both/../both")):
        with pytest.raises(ValueError, match="same folder"):
            find_pairs(tmp_path / one, tmp_path / other)


def test_links_are_no_partners_of_what_they_link_to(tmp_path):
    touch(tmp_path, "clean/a.wav", "clean/b.wav", "noisy/b.wav")
    os.symlink(tmp_path / "clean" / "a.wav", tmp_path / "noisy" / "a.wav")
    os.link(tmp_path / "clean" / "b.wav", tmp_path / "noisy" / "c.wav")
    found = find_matches(tmp_path / "noisy", tmp_path / "clean")
    assert [pair.name for pair in found.pairs] == ["b"]
    assert {(path.name, reason) for path, reason in found.unpaired} == {
        ("a.wav", "is its own clean file"), ("c.wav", "no such name")
    }  # fmt: skip


def test_clean_files_elsewhere_in_the_noisy_tree_are_not_scored(tmp_path):
    touch(tmp_path, *(f"d/{name}/a.wav" for name in ("clean", "clean_16k", "noisy")))
    pairs = find_pairs(tmp_path / "d", tmp_path / "d" / "clean_16k")
    assert [pair.noisy_path.parent.name for pair in pairs] == ["noisy"]


# --- by a pattern -----------------------------------------------------------------------------


def test_dns_challenge_by_number(tmp_path):
    noisy = ["clnsp1_train_69005_1_snr15_tl-21_fileid_12.wav", "b_snr-5_tl-30_fileid_1.wav",
             "c_fileid_9.wav", "no_number.wav"]  # fmt: skip
    found = partners(
        tmp_path, noisy, ["clean_fileid_1.wav", "clean_fileid_12.wav"], pair_by=r"fileid_(\d+)"
    )
    assert found == {noisy[0]: "clean_fileid_12.wav", noisy[1]: "clean_fileid_1.wav"}
    pairs = find_pairs(tmp_path / "noisy", tmp_path / "clean", pair_by=r"fileid_(\d+)")
    assert [pair.snr_db for pair in pairs] == [-5, 15]


def test_noizeus_by_sentence(tmp_path):
    found = partners(
        tmp_path, ["5dB/sp01_car_sn5.wav", "0dB/sp01_car_sn0.wav"], ["sp01.wav"], pair_by=r"sp\d+"
    )
    assert set(found.values()) == {"sp01.wav"} and len(found) == 2


def test_pattern_that_finds_two_clean_files(tmp_path):
    with pytest.raises(ValueError, match="none of 1 noisy files"):
        partners(tmp_path, ["a_1.wav"], ["b_1.wav", "c_1.wav"], pair_by=r"\d+")


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "snr_db"),
    [
        ("-5", -5), ("5dB", 5), ("m6dB", -6), ("snr-5", -5), ("5.0", 5), ("SNR5", 5), ("+5", 5),
        ("-2.5 dB", -2.5), ("minus5dB", -5), ("neg5db", -5), ("snr_5", 5), ("SNR_-5dB", -5),
        ("snr=10", 10), ("5_dB", 5), ("m3DB", -3), ("\u22125dB", -5), ("2,5dB", 2.5),
        ("5dB_SNR", 5), ("-0", 0), ("-5.0", -5), ("snr_m5", -5), ("dB-5", -5),
    ],
)  # fmt: skip
def test_snr_levels(name, snr_db):
    assert parse_snr_folder(name) == snr_db


@pytest.mark.parametrize(
    "name",
    ["5", "m6", "p225", "s5", "db", "snr", "x5db", "5dbx", "FAKS0", "-", "", "wav16k", "1034",
     "2024-05-01", "-20240501", "5db-10db", "v1.0", "si_et_05"],
)  # fmt: skip
def test_no_snr_levels(name):
    assert parse_snr_folder(name) is None


@pytest.mark.parametrize(
    ("noisy", "clean", "expected"),
    [
        # Case 13: a level that reads as an SNR is the SNR wherever it stands.
        (["0dB/car/a.wav", "5dB/babble/a.wav"], ["a.wav"],
         {("car", "unknown", 0), ("babble", "unknown", 5)}),
        (["0dB/xyz/a.wav", "5dB/uvw/a.wav"], ["a.wav"],
         {("xyz", "unknown", 0), ("uvw", "unknown", 5)}),
        (["snr5/car/f1/a.wav", "car/snr-5/f1/a.wav"], ["f1/a.wav"],
         {("car", "f1", 5), ("car", "f1", -5)}),
        (["f1/car/5.0/a.wav"], ["a.wav"], {("car", "f1", 5)}),
        (["-5/a.wav", "0/a.wav", "5/a.wav"], ["a.wav"],
         {("unknown", "unknown", snr_db) for snr_db in (-5, 0, 5)}),
        (["car/0/a.wav", "car/10/a.wav"], ["a.wav"],
         {("car", "unknown", 0), ("car", "unknown", 10)}),
        (["m6dB/s1_a.wav", "m3dB/s1_a.wav"], ["s1_a.wav"],
         {("unknown", "unknown", -6), ("unknown", "unknown", -3)}),
        (["TRAIN/DR1/FCJF0/SA1.WAV"], ["TRAIN/DR1/FCJF0/SA1.WAV"],
         {("unknown", "FCJF0", None)}),
        (["babble/FCJF0/5db/a.wav"], ["babble/FCJF0/5db/a.wav"], {("babble", "FCJF0", 5)}),
        (["f16/x/5db/a.wav", "m109/x/5db/a.wav"], ["a.wav"],
         {("f16", "x", 5), ("m109", "x", 5)}),
        (["noisy_testset_wav/p232_001.wav"], ["clean_testset_wav/p232_001.wav"],
         {("unknown", "unknown", None)}),
        (["devel/isolated/m6dB/s1_b.wav"], ["devel/clean/s1_b.wav"],
         {("unknown", "unknown", -6)}),
        (["mix_both/a.wav", "mix_single/a.wav"], ["a.wav"],
         {("mix_both", "unknown", None), ("mix_single", "unknown", None)}),
        (["0/19.wav"], ["0/19.wav"], {("unknown", "0", None)}),
    ],
)  # fmt: skip
def test_noise_speaker_and_snr(tmp_path, noisy, clean, expected):
    touch(tmp_path / "noisy", *noisy)
    touch(tmp_path / "clean", *clean)
    found = {
        (pair.noise, pair.speaker, None if math.isnan(pair.snr_db) else pair.snr_db)
        for pair in find_pairs(tmp_path / "noisy", tmp_path / "clean")
    }
    assert found == expected


def test_a_large_corpus_takes_seconds(tmp_path):
    """630 speakers read SA1: pairing must not compare all with all."""
    from speech.data.pairing import match

    speakers = [f"F{chr(65 + n // 26)}{chr(65 + n % 26)}C{d}" for n in range(63) for d in range(10)]
    clean = [f"TRAIN/DR{n % 8 + 1}/{s}/SA1.WAV" for n, s in enumerate(speakers)]
    noisy = [f"car/{s}/{snr_db}db/SA1.WAV" for s in speakers for snr_db in range(-5, 16, 5)]
    found = match(noisy, clean)
    assert all(m.clean is not None for m in found)
    assert [clean[m.clean].split("/")[2] for m in found] == list(np.repeat(speakers, 5))
