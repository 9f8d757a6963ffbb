"""Measures voxcli as whoever listens to it would: from recordings of the devices, beside the bars it is held to."""
