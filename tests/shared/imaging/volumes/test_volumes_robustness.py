"""Whatever the bytes are, reading them gives a volume of the promised type, or one InputError; never anything else."""

import gzip
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InputError
from shared.imaging.volumes import VolumeLimits, read_case, read_labels, read_volume
from tests.shared.imaging.volumes.made import OBLIQUE, dicom_files, enhanced_dicom, itk_bytes, nifti_bytes, orientations, zipped

LIMITS = VolumeLimits(bytes=2**20, voxels=10**5, files=50)
STARTS = [
    b"",
    b"\x5c\1\0\0",
    b"\x1c\2\0\0n+2\0",
    b"NRRD0004\n",
    b"ObjectType = Image\n",
    b"PK\3\4",
    b"\x1f\x8b\x08\0",
    bytes(128) + b"DICM",
]


@cache
def valid() -> dict[str, bytes]:
    affine = dict(orientations(OBLIQUE["oblique"]))["PIR"]
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nifti = nifti_bytes(values, affine, sform=1, qform=1)
    slices = dicom_files(values, affine)
    return {
        "nifti": nifti,
        "packed nifti": gzip.compress(nifti),
        "nifti 2": nifti_bytes(np.stack([values, values], axis=-1), affine, version=2),
        "mha": itk_bytes(values, affine, ".mha"),
        "packed mha": itk_bytes(values, affine, ".mha", packed=True),
        "nrrd": itk_bytes(values, affine, ".nrrd"),
        "packed nrrd": itk_bytes(values, affine, ".nrrd", packed=True),
        "enhanced": enhanced_dicom(values, affine),
        "series": zipped({str(index): content for index, content in enumerate(slices)}),
        "zipped nifti": zipped({"a.nii.gz": gzip.compress(nifti)}),
    }


def read_every_way(content: bytes) -> None:
    for read in (read_volume, read_labels, read_case):
        try:
            volume = read(content, name="input", limits=LIMITS)
        except InputError as error:
            assert str(error).startswith("input")  # noqa: PT017 (an error is one of two good answers)
            assert str(error).isprintable()  # noqa: PT017 (headers may hold anything)
            continue
        assert volume.values.ndim in (3, 4)
        assert 8 <= volume.values.size <= LIMITS.voxels
        assert volume.values.dtype.kind in ("iu" if read is read_labels else "f")
        assert np.isfinite(volume.values).all()
        assert np.isfinite(volume.affine).all()
        assert min(volume.spacing_mm) > 0


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=700))
def test_random_bytes(start, rest):
    read_every_way(start + rest)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files(data):
    content = bytearray(valid()[data.draw(st.sampled_from(sorted(valid())))])
    for _ in range(data.draw(st.integers(0, 4))):
        early = data.draw(st.booleans())  # headers are where the trouble is
        position = data.draw(st.integers(0, min(len(content), 400 if early else len(content)) - 1))
        change = data.draw(st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"0", b"-1", b"99999999", b"nan", b"\n", b" "])))
        content[position : position + len(change)] = change
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    read_every_way(bytes(content[:end]))


def test_the_undamaged_files_do_read():
    for name, content in valid().items():
        assert read_volume(content, limits=LIMITS).shape == (3, 4, 5), name
