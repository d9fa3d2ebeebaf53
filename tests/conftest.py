"""For every test: the processes that it starts keep compiled modules, as they do for users.

Some hundreds are started; where the environment forbids it, compiling the project would be a third of what each does.
"""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
