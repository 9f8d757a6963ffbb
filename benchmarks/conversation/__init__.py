"""Live conversations on a virtual sound card, measured by recordings of its microphone and loudspeaker."""
