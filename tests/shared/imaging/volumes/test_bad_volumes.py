"""What is no volume is refused with one message that names it, says what was found, what was expected, and what to do."""

import gzip
import io
import resource
import struct
import sys
import zipfile

import numpy as np
import pytest

from shared.errors import InputError
from shared.imaging.volumes import VolumeLimits, read_labels, read_volume
from tests.shared.imaging.made import encoded, gradient
from tests.shared.imaging.volumes.made import SHAPE, itk_bytes, nifti_bytes, zipped

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
VALUES = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)
NIFTI = nifti_bytes(VALUES, AFFINE)
PACKED = gzip.compress(NIFTI)
MHA = itk_bytes(VALUES, AFFINE, ".mha")
NRRD = itk_bytes(VALUES, AFFINE, ".nrrd")
PACKED_MHA = itk_bytes(VALUES, AFFINE, ".mha", packed=True)
PACKED_NRRD = itk_bytes(VALUES, AFFINE, ".nrrd", packed=True)


def broken(value: float) -> np.ndarray:
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = values[2, 2, 3] = value
    return values


def with_row(affine: np.ndarray, row: int, values: tuple[float, ...]) -> bytes:
    """An affine that nibabel would not write."""
    header = bytearray(nifti_bytes(VALUES, affine))
    header[280 + 16 * row : 296 + 16 * row] = struct.pack("<4f", *values)
    return bytes(header)


def encrypted() -> bytes:
    content = bytearray(zipped({"a.nii": NIFTI}))
    for mark, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + flag] |= 1
    return bytes(content)


def bomb() -> bytes:
    """100 MB of zeros behind an honest small volume."""
    return gzip.compress(NIFTI + bytes(100_000_000), compresslevel=1)


BAD = {
    "empty.nii": (b"", r"is empty \(0 bytes\)"),
    "truncated.nii.gz": (
        PACKED[: len(PACKED) // 2],
        "cannot be decoded as a NIfTI file .*ended before.*cut short; copy or export it again",
    ),
    "checksum.nii.gz": (PACKED[:-8] + b"\1" + PACKED[-7:], "cannot be decoded as a NIfTI file.*CRC"),
    "truncated.nii": (NIFTI[:-50], r"is cut short: 542 of 592 bytes are there. Copy or export it again"),
    "header_only.nii": (NIFTI[:300], "is not a volume"),
    "nan.nii": (nifti_bytes(broken(np.nan), AFFINE), r"has 2 of 120 voxels that are not finite .*the first at voxel \(1, 2, 3\). Replace"),
    "infinite.nii": (nifti_bytes(broken(-np.inf), AFFINE), r"has 2 of 120 voxels that are not finite"),
    "too_large_for_32_bits.nii": (nifti_bytes(broken(1).astype(np.float64) * 1e300, AFFINE), "beyond what 32 bits hold"),
    "zero_spacing.nii": (nifti_bytes(VALUES, AFFINE, pixdim={3: 0}), "its voxel spacing is 2, 2, 0, and three positive numbers"),
    "negative_spacing.nii": (nifti_bytes(VALUES, AFFINE, pixdim={1: -2}), "its voxel spacing is -2, 2, 3, and three positive numbers"),
    "nan_spacing.nii": (nifti_bytes(VALUES, AFFINE, pixdim={2: np.nan}), "its voxel spacing is 2, nan, 3"),
    "singular.nii": (with_row(AFFINE, 2, (0, 2, 0, 0)), "its sform has a zero spacing"),
    "same_direction.nii": (
        with_row(np.diag([2, 0.0005, 3, 1]), 0, (2, 2, 0, 0)),
        "its sform is singular: two of its axes run in the same direction",
    ),
    "nan_affine.nii": (with_row(AFFINE, 1, (0, np.nan, 0, 0)), "its sform is not a matrix of 4 x 4 finite numbers"),
    "flat.nii": (nifti_bytes(VALUES[:, :, :1], AFFINE), r"is a 2-D image \(4 x 5 x 1 voxels\), and a volume was expected"),
    "two_axes.nii": (nifti_bytes(VALUES[:, :, 0], AFFINE), r"is a 2-D image \(4 x 5 voxels\)"),
    "slices_in_time.nii": (nifti_bytes(VALUES[:, :, None], AFFINE), r"is a 2-D image \(4 x 5 x 1 voxels\)"),
    "five_axes.nii": (nifti_bytes(np.zeros((4, 5, 6, 2, 3), np.int16), AFFINE), r"4 x 5 x 6 x 2 x 3 values along 5 axes.*Split it"),
    "no_axes.nii": (nifti_bytes(VALUES, AFFINE, dim={0: 0}), "claims 0 axes|cannot be decoded"),
    "negative_size.nii": (nifti_bytes(VALUES, AFFINE, dim={2: -5}), "which is no volume"),
    "colours.nii": (nifti_bytes(VALUES, AFFINE, datatype=128), r"its voxels are colours \(RGB\)"),
    "complex.nii": (nifti_bytes(VALUES.astype(np.complex64), AFFINE), "its voxels are complex numbers"),
    "unknown_type.nii": (nifti_bytes(VALUES, AFFINE, datatype=999), r"an unknown type \(code 999\)"),
    "offset.nii": (nifti_bytes(VALUES, AFFINE, vox_offset=10), "its voxels begin at byte 10, which is not behind its header"),
    "pair.nii": (nifti_bytes(VALUES, AFFINE, magic=b"ni1"), "is the header of a NIfTI pair"),
    "analyze.nii": (nifti_bytes(VALUES, AFFINE, magic=b""), "ANALYZE 7.5"),
    "scaling.nii": (nifti_bytes(VALUES, AFFINE, scl_slope=2.0, scl_inter=np.inf), "cannot be decoded as a NIfTI file"),
    "huge.nii": (
        nifti_bytes(VALUES, AFFINE, dim={1: 30000, 2: 30000, 3: 30000}),
        "claims 30,000 x 30,000 x 30,000 voxels, but at most 600 mil",
    ),
    "huge.nii.gz": (gzip.compress(nifti_bytes(VALUES, AFFINE, dim={1: 30000, 2: 30000, 3: 30000})), "claims 30,000 x 30,000"),
    "long.nii": (nifti_bytes(VALUES, AFFINE, dim={0: 4, 4: 32000, 1: 5000}), "and 32,000 channels, but at most"),
    "scan.png": (encoded(gradient(), "PNG"), "is not a volume: it holds a PNG file, which has no place in space"),
    "notes.nii": (b"patient 7, no tumour seen\n", "it holds text, starting 'patient 7"),
    "notes.nii.gz": (gzip.compress(b"patient 7, no tumour seen\n"), "it holds gzip, and in it text, starting 'patient 7"),
    "page.mha": (b"<!DOCTYPE html><html></html>", "a web page"),
    "truncated.mha": (MHA[:-50], "is cut short: 190 of 240 bytes of voxels are there"),
    "header.mha": (MHA[:200], "its header ends without saying where the voxels are"),
    "truncated_packed.mha": (PACKED_MHA[:-20], "cannot be decoded|is cut short"),
    "other_file.mha": (MHA.replace(b"LOCAL", b"/etc/passwd"), "its voxels are in (another file, )?'/etc/passwd'"),
    "spacing.mha": (
        MHA.replace(b"ElementSpacing = 2 2 3", b"ElementSpacing = 2 0 3"),
        "its voxel spacing is 2 0 3, and 3 positive numbers",
    ),
    "direction.mha": (MHA.replace(b"TransformMatrix = -1 0 0", b"TransformMatrix = 0 0 -1"), "its orientation is singular"),
    "axes.mha": (MHA.replace(b"NDims = 3", b"NDims = 73"), "says that it has 73 axes, and gives the sizes of 3"),
    "type.mha": (MHA.replace(b"MET_SHORT", b"MET_BANANA"), "ElementType is 'MET_BANANA'; these are read: MET_CHAR"),
    "huge.mha": (
        MHA.replace(b"DimSize = 4 5 6", b"DimSize = 40000 50000 60000"),
        "claims 40,000 x 50,000 x 60,000 voxels, but at most 600",
    ),
    "text.mha": (MHA.replace(b"BinaryData = True", b"BinaryData = False"), "its voxels are written as text"),
    "truncated.nrrd": (NRRD[:-50], "is cut short: 190 of 240 bytes of voxels are there"),
    "truncated_packed.nrrd": (PACKED_NRRD[:-20], "is cut short"),
    "header.nrrd": (NRRD[:150], "its header does not end"),
    "other_file.nrrd": (
        NRRD.replace(b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd"),
        "its voxels are in (another file, )?'/etc/passwd'",
    ),
    "space.nrrd": (NRRD.replace(b"left-posterior-superior", b"scanner-xyz"), "its space is 'scanner-xyz'; these are read"),
    "directions.nrrd": (NRRD.replace(b"(0,0,3)", b"(0,0,0)"), "its orientation has a zero spacing"),
    "type.nrrd": (NRRD.replace(b"type: short", b"type: block"), "its voxels are of type 'block'"),
    "encoding.nrrd": (NRRD.replace(b"encoding: raw", b"encoding: hex"), "its encoding is 'hex'; these are read: raw"),
    "huge.nrrd": (NRRD.replace(b"sizes: 4 5 6", b"sizes: 40000 50000 60000"), "claims 40,000 x 50,000 x 60,000"),
    "sizes.nrrd": (NRRD.replace(b"sizes: 4 5 6", b"sizes: 4 5"), "has 3 axes, and gives the sizes of 2"),
    "empty.zip": (zipped({}), "holds no files"),
    "texts.zip": (zipped({"a.txt": b"hello", "b.txt": b"hello"}), r"holds no DICOM files \(found: a.txt, b.txt\)"),
    "several.zip": (zipped({"t1.nii": NIFTI, "t2.nii": NIFTI}), r"holds 2 volume files \(t1.nii, t2.nii\), and one volume was expected"),
    "inner.zip": (zipped({"a.nii": NIFTI[:-50]}), r"inner.zip \(a.nii\): is cut short"),
    "strange_name.zip": (zipped({"a\n\x1b[31m.nii": NIFTI[:-50]}), r"\(a\?\?\[31m.nii\): is cut short"),
    "truncated.zip": (zipped({"a.nii": NIFTI})[:-30], "cannot be decoded as a zip archive"),
    "damaged.zip": (zipped({"a.nii": NIFTI}).replace(zipped({"a.nii": NIFTI})[200:210], bytes(10)), "cannot be decoded"),
    "locked.zip": (encrypted(), "is protected by a password"),
    "fake.dcm": (bytes(128) + b"DICM" + b"\xff" * 100, "cannot be decoded as a DICOM file|no images of a scan"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_message(tmp_path, name):
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "gz"))
    with pytest.raises(InputError, match=reason) as caught:
        read_volume(content, name=name)
    assert str(caught.value).startswith(name)
    with pytest.raises(InputError):
        read_labels(content, name=name)


def test_the_undamaged_ones_do_read():
    for content in (NIFTI, PACKED, MHA, NRRD, PACKED_MHA, PACKED_NRRD, zipped({"a/b.nii.gz": PACKED})):
        np.testing.assert_array_equal(read_volume(content).values, VALUES)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"no.nii.gz: there is no such file"):
        read_volume(tmp_path / "no.nii.gz")
    with pytest.raises(InputError, match="holds no files"):
        read_volume(tmp_path)
    (tmp_path / "t1.nii.gz").write_bytes(PACKED)
    with pytest.raises(InputError, match=r"holds no DICOM files \(found: t1.nii.gz\). Give a folder"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match="holds no files"):
        read_volume([])


def test_a_huge_claim_costs_no_memory():
    """Each claims tens of terabytes, or unpacks to 100 MB; the process's peak may not grow by a third of that."""
    large = bomb()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("huge.nii", "huge.nii.gz", "long.nii", "huge.mha", "huge.nrrd"):
        with pytest.raises(InputError):
            read_volume(BAD[name][0])
    with pytest.raises(InputError, match=r"unpacks to more than 0.0186 GiB"):
        read_volume(large, limits=VolumeLimits(bytes=20_000_000))
    packed = PACKED_NRRD[: PACKED_NRRD.index(b"\n\n") + 2] + gzip.compress(bytes(100_000_000))
    with pytest.raises(InputError, match="unpacks to more than the 240 bytes that its header announces"):
        read_volume(packed)
    scale = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale < 33e6


def test_limits_are_the_callers(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(NIFTI)
    with pytest.raises(InputError, match="592 bytes, but at most 591 bytes are read"):
        read_volume(path, limits=VolumeLimits(bytes=591))
    with pytest.raises(InputError, match=r"claims 4 x 5 x 6 voxels, but at most 0.000119 million"):
        read_volume(path, limits=VolumeLimits(voxels=119))
    assert read_volume(path, limits=VolumeLimits(bytes=592, voxels=120)).shape == SHAPE
    several = zipped({f"{index}": b"x" for index in range(5)})
    with pytest.raises(InputError, match="holds 5 files, but at most 4 are read"):
        read_volume(several, limits=VolumeLimits(files=4))
    with pytest.raises(InputError, match="its files have more than"):
        read_volume(zipped({"zeros": bytes(100_000)}), limits=VolumeLimits(bytes=50_000))
    (tmp_path / "more").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="its files have more than"):
        read_volume(tmp_path, limits=VolumeLimits(bytes=900))


def test_no_member_of_an_archive_is_larger_than_announced():
    """zipfile stops at the size in the archive's list, and the checksum then tells."""
    buffer = io.BytesIO(zipped({"a.nii": NIFTI + bytes(10_000)}))
    content = bytearray(buffer.getvalue())
    for mark, position in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = content.index(mark) + position
        content[start : start + 4] = len(NIFTI).to_bytes(4, "little")
    assert zipfile.ZipFile(io.BytesIO(content)).infolist()[0].file_size == len(NIFTI)
    with pytest.raises(InputError, match="cannot be decoded"):
        read_volume(bytes(content))


def test_libraries_do_not_talk_on_the_terminal(capfd, recwarn):
    for name, (content, _) in BAD.items():
        with pytest.raises(InputError):
            read_volume(content, name=name)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
