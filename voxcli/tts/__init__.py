"""Text-to-speech: system voices through pyttsx3, and neural voices through piper."""
