"""Developer tools that measure and check voxcli. They are no part of the wheel."""
