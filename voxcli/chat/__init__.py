"""What a live conversation needs beside the turn: audio devices."""
