"""Which names of the standard library are read for the built-in corpus, and how."""

from __future__ import annotations

import os

NOT_A_LIBRARY = "test tests idlelib idle_test turtledemo ensurepip pydoc_data encodings macholib __phello__ __hello__"
WITH_SIDE_EFFECTS = "antigravity this"
OF_ANOTHER_PLATFORM = "ntpath nturl2path"
REMOVED = """
    aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib nis nntplib
    ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib
"""
"""Gone in Python 3.12 or 3.13."""
NOT_IN_LIBRARY = "site-packages dist-packages lib-dynload __pycache__"
SKIPPED = frozenset(f"{NOT_A_LIBRARY} {WITH_SIDE_EFFECTS} {OF_ANOTHER_PLATFORM} {REMOVED} {NOT_IN_LIBRARY}".split())
"""Names of files and folders that are never opened."""

PUBLIC_MODULE_NAMES = {
    "posixpath": "os.path",
    "genericpath": "_genericpath",
    "concurrent.futures.thread": "concurrent.futures",
    "concurrent.futures.process": "concurrent.futures",
}
"""Modules known under another name. A leading underscore marks one that has no public name of its own."""

C_NAMES = "array atexit binascii cmath gc itertools marshal math select sys time unicodedata zlib"
C_ACCELERATORS = "bz2 collections contextvars csv decimal functools hashlib io lzma operator pickle queue signal socket"
C_MODULES = (
    {"builtins": "", "posix" if os.name == "posix" else "nt": "os"}
    | {name: name for name in C_NAMES.split()}
    | {f"_{name}": name for name in f"{C_ACCELERATORS} sqlite3 struct weakref".split()}
)
"""Modules written in C that are safe to import, and the public module that their names belong to."""

BUILTIN_TYPES = "bool bytearray bytes complex dict float frozenset int list memoryview range set slice str tuple"
EVERYDAY_CLASSES = """
    collections.Counter collections.OrderedDict collections.deque datetime.date datetime.datetime datetime.time
    datetime.timedelta pathlib.Path pathlib.PurePath random.Random threading.Barrier threading.Condition threading.Event
    threading.Thread unittest.TestCase
"""
METHOD_CLASSES = frozenset(f"{BUILTIN_TYPES} {EVERYDAY_CLASSES}".split())
"""Classes whose methods are documents of their own; every other class lists its methods in its own document."""
