"""What held a training back: samples of the machine and of the steps, nine rules that judge them, the report."""
