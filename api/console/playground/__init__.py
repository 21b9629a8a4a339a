"""The playground: try a prompt on one model, or on two side by side."""
