"""What a file is that is not the wanted one, told by its first bytes, and how to get at what it holds."""

import mmap
import re

HEAD = 4096  # bytes looked at
SHOWN = 40  # characters of a text in a message
NUMPY_LIST = "save what it holds with pickle.dump, arrays as numpy arrays (demos: one list of transitions)"
TORCH = f"read it with torch.load(FILE, weights_only=True) and {NUMPY_LIST}"
NPZ = f"read it with numpy.load and {NUMPY_LIST}"
OWN_OBJECTS = "if it is your own, read it with {}, then " + NUMPY_LIST
PACKED = "unpack it first: {} FILE"
PICTURE = f"read it with the program that wrote it and {NUMPY_LIST}"
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of a number, others behind it
BEGINNINGS: list[tuple[int, bytes, str, str]] = [  # (offset, bytes there, what it is, what to do)
    (0, b"\x1f\x8b", "a gzip file", PACKED.format("gunzip -k")),
    (0, b"BZh", "a bzip2 file", PACKED.format("bunzip2 -k")),
    (0, b"\xfd7zXZ\0", "an xz file", PACKED.format("unxz -k")),
    (0, b"]\0\0", "an lzma file", PACKED.format("unlzma -k")),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", PACKED.format("unzstd")),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", PACKED.format("unlz4")),
    (0, b"\x78\x01", "a zlib file", f"unpack it with zlib or joblib.load and {NUMPY_LIST}"),
    (0, b"\x78\x9c", "a zlib file", f"unpack it with zlib or joblib.load and {NUMPY_LIST}"),
    (0, b"\x78\xda", "a zlib file", f"unpack it with zlib or joblib.load and {NUMPY_LIST}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", PACKED.format("7z x")),
    (0, b"Rar!", "a rar archive", PACKED.format("unrar x")),
    (257, b"ustar", "a tar archive", PACKED.format("tar -xf")),
    (0, OLD_TORCH, "what torch.save wrote (its old format)", TORCH),
    (0, b"\x93NUMPY", "a numpy .npy file", OWN_OBJECTS.format("numpy.load(FILE, allow_pickle=True).tolist()")),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", f"read it with h5py and {NUMPY_LIST}"),
    (0, b"MATLAB", "a MATLAB file", f"read it with scipy.io.loadmat and {NUMPY_LIST}"),
    (0, b"PAR1", "a parquet file", "give the folder of its LeRobot dataset, the one that holds meta/info.json"),
    (0, b"ARROW1", "an Arrow file", "give a LeRobot dataset's folder, or " + NUMPY_LIST),
    (0, b"#ROSBAG", "a ROS bag", f"read it with rosbag and {NUMPY_LIST}"),
    (0, b"\x89MCAP0\r\n", "an MCAP recording", f"read it with the mcap package and {NUMPY_LIST}"),
    (0, b"SQLite format 3\0", "an SQLite database (a ROS 2 bag?)", f"read it with rosbag2_py and {NUMPY_LIST}"),
    (0, b"\x89PNG\r\n", "a PNG picture", PICTURE),
    (0, b"\xff\xd8\xff", "a JPEG picture", PICTURE),
    (0, b"GIF8", "a GIF picture", PICTURE),
    (4, b"ftyp", "an MP4 video", "give the folder of its LeRobot dataset, the one that holds meta/info.json"),
    (0, b"RIFF", "an AVI or WebP file", PICTURE),
    (0, b"%PDF", "a PDF", PICTURE),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
]
ZIP_END = b"PK\x05\x06"
PROTOCOL_0 = rb"\(?[ldt]p\d|\([ldt]\n|c[\w.]+\n[\w.]+\n|\(i[\w.]+\n"  # pickles that are text
WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!doctype")


def kind_of(data: bytes | mmap.mmap) -> tuple[str, str] | None:
    """What the whole `data` of a file is, in words, and what to do with it; None where nobody knows.

    To be asked only about a file that was found to be unreadable: a text may be a pickle of protocol 0.
    """
    head = bytes(data[:HEAD])
    if not head:
        return "an empty file (EOFError)", "record or copy it again"
    if head.startswith(b"PK"):
        return _zip_kind(data, head)
    for offset, beginning, what, remedy in BEGINNINGS:
        if head[offset:].startswith(beginning):
            return what, remedy
    if b"joblib.numpy_pickle" in head:
        return "what joblib.dump wrote", OWN_OBJECTS.format("joblib.load")
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= len(data):
        return "a safetensors file", f"read it with safetensors.numpy.load_file and {NUMPY_LIST}"
    if not any(head):
        return "zero bytes from the start (a full disk, or a copy that broke off)", "record or copy it again"
    return _text_kind(head)


def _zip_kind(data, head):
    if data.rfind(ZIP_END) < 0:
        return "a zip archive that is cut off (what torch.save or numpy.savez began?)", "record or copy it again"
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]  # the first member's name
    if first.endswith((b"/data.pkl", b"/.format_version", b"/byteorder", b"/version")):
        return "what torch.save wrote", TORCH
    if first.endswith(b".npy"):
        return "a numpy .npz file", NPZ
    return "a zip archive", PACKED.format("unzip")


def _text_kind(head):
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a text in UTF-16", NUMPY_LIST
    if head.lstrip().lower().startswith(WEB_PAGES):
        return (
            "a web page (a log-in or an error, in place of the file)",
            "download the file itself, with its raw address, logged in where that is needed",
        )
    if re.match(PROTOCOL_0, head):
        return None
    try:
        text = head[: head.rfind(b"\n") + 1 or len(head)].decode("utf-8")
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return None
    shown = ascii(" ".join(text.split())[:SHOWN])
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        return f"JSON text ({shown} ...)", f"read it with json.load and {NUMPY_LIST}"
    lines = text.splitlines()
    if len(lines) > 1 and any(lines[0].count(mark) == lines[1].count(mark) > 0 for mark in ",;\t"):
        return f"a table as text (CSV; {shown} ...)", f"a table holds no pictures; {NUMPY_LIST}"
    return f"a text ({shown} ...)", f"check the path; {NUMPY_LIST}"
