"""What `voxcli doctor` checks, and what it concludes."""
