"""The checks of doctor.py: each looks at one part of the installation and gives findings."""
