"""Text-to-speech: system voices through pyttsx3, neural voices, piper, and voices on servers; each for its language."""
