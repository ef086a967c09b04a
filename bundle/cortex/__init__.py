"""The contract with Snowflake Cortex (docs/cortex.md) as code.

Every function here works on plain data: it reads no file, opens no connection and asks no clock. The package uses
Python's standard library only and imports nothing else of this project. A docstring names the line of docs/cortex.md
that the function implements by the anchor of that line.
"""
