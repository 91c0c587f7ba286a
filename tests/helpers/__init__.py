"""What tests of several folders share and pytest does not collect."""
