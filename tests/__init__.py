import os

# Triton decides when it is first imported, which torch does where it is installed
os.environ.setdefault("TRITON_INTERPRET", "1")
