"""`python main.py` is the command `rankseg` from a clone, see rankseg_jax/cli.py."""

from rankseg_jax import cli

if __name__ == '__main__':
    cli.start()
