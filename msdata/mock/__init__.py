"""Mock objects with physical meaning, for tests and benchmarks without the real 2.5 TB.

`write_mock` writes nine-band objects as upstream's downloader does: pickled dicts and a
`catalog.csv`. The redshift can be learned from the pixels. README.md beside this file says what is
real and what is modeled. Importing this package needs NumPy alone; writing needs the packages of
`pip install 'msdata[mock]'`.
"""

from msdata.mock.write import write_mock

__all__ = ["write_mock"]
