"""Text to clips: voices of the system through pyttsx3, and neural ones through piper."""
