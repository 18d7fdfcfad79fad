"""The client that asks a judge, its cache, and a judge as the configuration names it."""
